import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.datasets.folder import _warn
from dhr_lightning.data.files import read_image
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.errors import ArtifactError, ConfigError, DataError, DHRError, MaskError, TagError
from dhr_lightning.evaluation.truth import DatasetTruth
from dhr_lightning.provenance.identity import StepIdentity
from tests.data.datasets.folder_samples import names, read, resolve, write_folder, write_photo

PHOTOS = {"a.jpg": ["cat"], "b.jpg": ["dog"], "sub/c.PNG": ["car", "cat"], "sub/d e.JPEG": []}
TABLE = 'image,tags\na.jpg,cat\nb,dog\nsub/c.PNG,"cat;car"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _warn.cache_clear()
    return write_folder(tmp_path / "photos", TABLE, PHOTOS)


def write_mask(path: Path, shape: tuple[int, int] = (16, 24), value: int = 1, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).convert(mode).save(path)


def test_ids_tags_and_classes_come_from_the_folder(folder: Path):
    info = resolve(folder)
    assert info.name == "photos"
    assert info.classes.names == ("background", "car", "cat", "dog")
    assert names(folder) == {"a": ["cat"], "b": ["dog"], "sub/c": ["car", "cat"], "sub/d e": []}
    assert read(folder)["sub/c"].image == folder / "images" / "sub" / "c.PNG"
    assert resolve(folder, background=False).classes.names == ("car", "cat", "dog")
    assert read(folder, background=False)["sub/c"].tags == (0, 1)


def test_photos_may_lie_in_the_folder_itself_beside_their_masks(tmp_path: Path):
    for name in ("a.jpg", "b.bmp", "c.webp", "d.tif"):
        write_photo(tmp_path / "set" / name, ["cat"])
    write_mask(tmp_path / "set" / "masks" / "a.png")
    write_photo(tmp_path / "set" / ".cache" / "hidden.jpg")
    (tmp_path / "set" / "tags.csv").write_text("image,tag\na,cat\nb,cat\nc,cat\nd,cat\n")
    records = read(tmp_path / "set")
    assert list(records) == ["a", "b", "c", "d"]
    assert records["a"].gt_mask == tmp_path / "set" / "masks" / "a.png"
    assert [read_image(record.image).size for record in records.values()] == [(24, 16)] * 4


@pytest.mark.parametrize(
    "spelling",
    ["a.jpg", "a", "a.JPG", "./a.jpg", "images/a.jpg", "images\\a.jpg", "{root}/images/a.jpg", "{root}/images/a"],
)
def test_a_row_may_spell_its_image_in_many_ways(folder: Path, spelling: str):
    (folder / "tags.csv").write_text(f"image,tag\n{spelling.format(root=folder.resolve())},cat\nb.jpg,dog\na,dog\n")
    assert names(folder)["a"] == ["cat", "dog"]  # merged


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "/etc/passwd", "C:\\photos\\a.jpg"])
def test_a_row_that_leads_out_of_the_folder_is_refused(folder: Path, name: str):
    (folder / "tags.csv").write_text(f"image,tag\nb.jpg,dog\n{name},cat\n")
    with pytest.raises(DataError, match=r"tags\.csv, line 3: .* leads out of"):
        read(folder)


def test_rows_without_an_image_stop_or_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("dhr_lightning"), "propagate", True)
    (folder / "tags.csv").write_text(TABLE + "x1.jpg,cat\nx2.jpg,cat\nx3,cat\nx4,cat\n")
    with pytest.raises(DataError, match=r"4 names match no image: 'x1\.jpg' \(.*tags\.csv, line 5\).*\.\.\..*ignore"):
        read(folder)
    with caplog.at_level(logging.WARNING, "dhr_lightning"):
        assert len(read(folder, unmatched="ignore")) == 4
    assert "4 names match no image: 'x1.jpg'" in caplog.text


def test_no_matching_row_at_all_is_always_an_error(folder: Path):
    (folder / "tags.csv").write_text("image,tag\nA.jpg,cat\n")
    with pytest.raises(DataError, match=r"None of the 1 rows .* 'A\.jpg' .*is 'a'\. Did you mean 'a'\?"):
        read(folder, unmatched="ignore")


def test_two_files_of_one_stem_are_refused(folder: Path):
    write_photo(folder / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would share the id 'a'"):
        read(folder)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "doge", "car"], r"Unknown tag 'dog' in .*tags\.csv, line 3\. Did you mean 'doge'\?"),
        (["Cat", "dog", "car"], r"Unknown tag 'cat' in .*line 2\. Did you mean 'Cat'\?"),
        (["bus", "tree"], r"Unknown tag 'cat' in .*line 2 \(3 unknown tags in all\)\. Known: bus, tree"),
    ],
)
def test_an_unknown_tag_names_line_and_nearest_class(folder: Path, classes: list[str], message: str):
    with pytest.raises(TagError, match=message):
        read(folder, classes=classes)


def test_classes_may_be_given_as_list_or_file(folder: Path):
    (folder / "classes.txt").write_text("\ufeffbackground\r\ndog\r\n\r\ncat\r\ncar\r\nbus\r\n", encoding="utf-8")
    given = resolve(folder, classes=["dog", "cat", "car", "bus"]).classes
    assert given == resolve(folder, classes="classes.txt").classes
    assert given.names == ("background", "dog", "cat", "car", "bus")
    assert read(folder, classes="classes.txt")["sub/c"].tags == (2, 3)
    (folder / "classes.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(ConfigError, match=r"classes\.txt, line 3 repeats 'dog' of line 1"):
        resolve(folder, classes="classes.txt")
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read"):
        resolve(folder, classes="none.txt")


def test_a_background_tag_is_refused_where_background_is_implied(folder: Path):
    (folder / "tags.csv").write_text(TABLE + "sub/d e,background\n")
    with pytest.raises(TagError, match="does the tag 'background' mean that an image shows none"):
        resolve(folder)
    assert "background" in resolve(folder, background=False).classes.tag_names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clases": ["cat"]}, "Unknown data.options 'clases' of a folder. Did you mean 'classes'"),
        ({"holdout": 1.0}, r"holdout in \[0, 1\)"),
        ({"holdout": "10%"}, "holdout to be int or float"),
        ({"background": "no"}, "background to be bool"),
        ({"unmatched": "drop"}, "unmatched to be one of error, ignore"),
        ({"classes": ["cat", 1]}, "to be text, but got 1"),
        ({"name": "my photos"}, "'my photos' cannot name a folder.*Set data.options.name"),
        ({"name": "voc"}, "'voc' belongs to a dataset of the catalog"),
        ({"images": "pictures"}, "pictures does not exist. Correct data.options.images"),
        ({"masks": "labels"}, "labels does not exist. Correct data.options.masks"),
        ({"classes": []}, "holds no class"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(folder: Path, options: dict[str, object], message: str):
    with pytest.raises(DHRError, match=message):
        read(folder, **options)


def test_a_share_is_held_out_by_the_id_alone(tmp_path: Path):
    ids = [f"img_{k:03d}" for k in range(60)]
    root = write_folder(
        tmp_path / "many", "image,tag\n" + "".join(f"{one},cat\n" for one in ids), [f"{i}.png" for i in ids]
    )
    kept = {one for one in ids if int(hashlib.sha256(one.encode()).hexdigest()[:16], 16) / 16**16 < 0.25}
    assert set(read(root, "val", holdout=0.25)) == kept
    assert set(read(root, "train", holdout=0.25)) == set(ids) - kept
    assert 6 < len(kept) < 24
    for one in ids[::2]:
        (root / "images" / f"{one}.png").unlink()
    assert set(read(root, "val", holdout=0.25, unmatched="ignore")) == kept & set(ids[1::2])
    assert read(root, "val", holdout=0, unmatched="ignore") == {}


def test_lists_or_a_column_say_the_splits(folder: Path):
    (folder / "val.txt").write_text("\ufeffb.jpg\r\n\r\n", encoding="utf-8")
    assert (set(read(folder, "train")), set(read(folder, "val"))) == ({"a", "sub/c", "sub/d e"}, {"b"})
    (folder / "train.txt").write_text("images/sub/c.PNG\n")
    assert (set(read(folder, "train")), set(read(folder, "val"))) == ({"sub/c"}, {"b"})
    (folder / "train.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"val\.txt, line 1: 'b' is in train\.txt too"):
        read(folder)
    (folder / "tags.csv").write_text("image,tag,split\na,cat,val\nb,dog,train\nsub/c,cat,test\n")
    with pytest.raises(DataError, match=r"Both .* say the splits"):
        read(folder)
    for name in ("train.txt", "val.txt"):
        (folder / name).unlink()
    found = [set(read(folder, split)) for split in ("train", "val", "test")]
    assert found == [{"b", "sub/d e"}, {"a"}, {"sub/c"}]


def test_a_line_of_a_list_without_an_image_is_named(folder: Path):
    (folder / "train.txt").write_text("a\nnone.jpg\n")
    with pytest.raises(DataError, match=r"'none\.jpg' \(.*train\.txt, line 2\)"):
        read(folder)


def test_a_training_split_without_images_is_refused(folder: Path):
    (folder / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"No image of .* is in the training split \(train\.txt\)"):
        read(folder)


def test_masks_are_optional_and_checked_before_work(folder: Path, tmp_path: Path):
    write_mask(folder / "masks" / "sub" / "c.png")
    write_mask(folder / "masks" / "stray.png")
    records = read(folder)
    assert [one for one, record in records.items() if record.gt_mask] == ["sub/c"]
    classes = resolve(folder).classes
    check_dataset(tmp_path, {"train": list(records.values())}, classes)
    for change, message in (
        ({"mode": "RGB"}, "3 channels"),
        ({"value": 9}, r"outside the 4 classes and 255: 9 \(384 px\)"),
        ({"shape": (24, 16)}, "16x24 pixels, but its image is 24x16 .*EXIF"),
        ({"shape": (8, 12)}, "12x8 pixels, but its image is 24x16"),
    ):
        write_mask(folder / "masks" / "sub" / "c.png", **change)
        with pytest.raises(MaskError, match=message):
            check_dataset(tmp_path, {"train": list(records.values())}, classes)
    write_mask(folder / "other" / "c_mask.png")
    with pytest.raises(DataError, match=r"None of the 1 masks in .*other belongs to an image, first c_mask\.png"):
        read(folder, masks="other")


def test_a_photo_that_exif_turns_is_turned_everywhere(folder: Path, tmp_path: Path):
    write_photo(folder / "images" / "a.jpg", ["cat"], size=(24, 16), orientation=6)
    write_mask(folder / "masks" / "a.png", shape=(24, 16))
    record, info = read(folder)["a"], resolve(folder)
    assert read_image(record.image).size == (16, 24)
    check_dataset(tmp_path, {"train": [record]}, info.classes)
    truth = DatasetTruth(resolve(folder), folder)
    assert truth.image("train", "a").shape[:2] == truth.mask("train", "a").shape == (24, 16)


def test_a_photo_of_more_than_eight_bits_is_refused(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png has 16 bits per channel"):
        read_image(tmp_path / "deep.png")


def test_an_id_that_cannot_name_a_file_is_refused(folder: Path):
    write_photo(folder / "images" / " spaced .jpg")
    with pytest.raises(ArtifactError, match="cannot name a file"):
        read(folder)


def config(folder: Path, **options: object) -> dict[str, object]:
    data = {
        "dataset": "folder",
        "root": str(folder),
        "workspace": str(folder.parent),
        "options": {"holdout": 0, **options},
    }
    return {"model": {"class_path": "CAMTask", "init_args": {}}, "data": data, "trainer": {}}


def describe(settings: dict[str, object]) -> Manifest:
    identity = StepIdentity(settings)
    return identity.describe(identity.address("cam"), "train")


def test_artifacts_have_the_users_name_and_depend_on_the_class_list_not_on_options(folder: Path):
    before = describe(config(folder))
    assert before.dataset == "photos"
    assert describe(config(folder, name="mine")).dataset == "mine"
    write_mask(folder / "other" / "a.png")
    assert before.changes_to(describe(config(folder, masks="other", unmatched="ignore"))) == []
    assert before.changes_to(describe(config(folder, classes=["car", "cat", "dog"]))) == []
    others = describe(config(folder, classes=["car", "cat", "dog", "bus"]))
    (address, reason, *_) = before.changes_to(others)
    assert address == f"address {before.address} -> {others.address}"  # other classes are another variant
    assert reason.startswith("data.classes [")
    assert reason.endswith('"bus"]')
    (folder / "tags.csv").write_text(TABLE.replace("b,dog", "b,cat;dog"))
    assert any(reason.startswith("input data/train") for reason in before.changes_to(describe(config(folder))))


@pytest.mark.parametrize("root", [None, "", "nowhere"])
def test_a_folder_that_is_not_there_is_named(root: str | None):
    from dhr_lightning.data.registry import resolve_dataset

    with pytest.raises(DHRError, match=r"needs data\.root|nowhere does not exist"):
        resolve_dataset({"dataset": "folder", "root": root})
