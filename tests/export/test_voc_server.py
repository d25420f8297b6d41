"""The file for the VOC server: what is in it, read with other means, and what is refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask, write_mask
from dhr_lightning.data.catalog import ClassSet, voc_palette
from dhr_lightning.data.datasets.voc import VOC_CLASSES, read_voc
from dhr_lightning.data.files import read_image
from dhr_lightning.errors import MaskError
from dhr_lightning.export import voc_server
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import make_plan
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
CLASSES = ClassSet(VOC_CLASSES)
TEST = {"2008_000007": (41, 24), "2008_000001": (24, 40)}  # width, height; not in the order of the names
PLACE = "results/VOC2012/Segmentation/comp6_test_cls"
DATA = ["--data", "voc", "--root", "VOC2012"]
EXPORT = ["export", "--to", "voc-server", *DATA]
FOLDER = Path("exports/voc/voc-server_test")

Put = Callable[..., None]


def prediction(name: str = "2008_000007") -> Path:
    """The predicted mask of a test image."""
    step = make_plan(split_request(DATA))["dhr"]
    return step.view.store.path(step.address("prediction"), "test", name)


@pytest.fixture
def put(voc_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """A VOC folder with two test images; the function seals predictions of a split."""
    monkeypatch.chdir(voc_copy.parent)
    (voc_copy / "ImageSets" / "Segmentation" / "test.txt").write_text("".join(f"{name}\n" for name in TEST))
    for name, size in TEST.items():
        Image.new("RGB", size).save(voc_copy / "JPEGImages" / f"{name}.jpg")

    def seal(split: str = "test", *, shift: int = 0) -> None:
        step = make_plan(split_request(DATA))["dhr"]
        address, records = step.address("prediction"), read_voc(voc_copy, split, CLASSES)
        identity, ids = step.identity.describe(address, split), [record.id for record in records]
        with step.view.store.open_writer(address, split, identity=identity, ids=ids, palette=CLASSES.palette) as writer:
            for record in records:
                writer.write(record.id, mask_of(record.id, read_image(record.image).size, shift))
            writer.seal()

    return seal


def mask_of(name: str, size: tuple[int, int], shift: int = 0) -> np.ndarray:
    """Every class value somewhere."""
    values = (np.arange(size[0] * size[1]) + sum(name.encode()) + shift) % 21
    return values.reshape(size[1], size[0]).astype(np.uint8)


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_tar_holds_the_masks_of_the_split_as_the_server_wants_them(put: Put, lines: Lines, split: str):
    put(split)
    assert main([*EXPORT, *(["--split", "val"] if split == "val" else [])]) == 0
    folder, place = Path(f"exports/voc/voc-server_{split}"), PLACE.replace("test", split)
    records = read_voc(Path("VOC2012"), split, CLASSES)
    names = {f"{place}/{record.id}.png" for record in records}
    with tarfile.open(folder / f"comp6_{split}_cls.tar") as tar:
        assert set(tar.getnames()) == names
        assert len(tar.getnames()) == 2
        for record in records:
            name = f"{place}/{record.id}.png"
            data = tar.extractfile(name).read()
            assert data == (folder / name).read_bytes()
            with Image.open(io.BytesIO(data)) as image, Image.open(record.image) as photo:
                assert (image.mode, image.size) == ("P", photo.size)
                assert np.array_equal(np.array(image), mask_of(record.id, photo.size))
                palette = np.array(image.getpalette()).reshape(-1, 3)
                assert np.array_equal(palette[:21], voc_palette()[:21])
                assert data[24] == 8  # bits of a pixel
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *names,
        f"comp6_{split}_cls.tar",
    }
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert lines.messages[-1] == f"export: 2 masks in {folder}"


def test_the_same_masks_are_up_to_date_and_others_are_not_replaced_without_a_word(put: Put, lines: Lines):
    put()
    assert main(EXPORT) == 0
    before = (FOLDER / "comp6_test_cls.tar").read_bytes()
    assert main(EXPORT) == 0
    assert lines.messages[-1] == f"export: up to date, 2 masks in {FOLDER}"
    put(shift=1)
    assert main(EXPORT) == 2
    assert "holds another export" in lines.messages[-1]
    assert (FOLDER / "comp6_test_cls.tar").read_bytes() == before
    assert main([*EXPORT, "--force"]) == 0
    assert (FOLDER / "comp6_test_cls.tar").read_bytes() != before
    (FOLDER / "letter.txt").write_text("mine")
    assert main([*EXPORT, "--force"]) == 2
    assert "holds 'letter.txt', which this export does not write" in lines.messages[-1]
    assert (FOLDER / "letter.txt").read_text() == "mine"
    assert main([*EXPORT, "--output", str(FOLDER / "letter.txt")]) == 2
    assert (FOLDER / "letter.txt").read_text() == "mine"


def test_predictions_that_are_missing_unfinished_or_of_other_images_are_refused(put: Put, lines: Lines):
    assert main(EXPORT) == 2
    assert "prediction/test) is absent" in lines.messages[-1]
    assert (
        "so it is not exported. Run `python -m dhr_lightning run --data voc --root VOC2012` first."
        in lines.messages[-1]
    )
    put()
    path = prediction()
    content = path.read_bytes()
    path.unlink()
    assert main(EXPORT) == 2
    assert "prediction/test) is partial" in lines.messages[-1]
    path.write_bytes(content)
    listed = Path("VOC2012/ImageSets/Segmentation/test.txt")
    listed.write_text(listed.read_text() + "2007_000001\n")
    assert main(EXPORT) == 2
    assert "prediction/test) is stale" in lines.messages[-1]
    assert not Path("exports").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda mask: np.where(mask == 3, 255, mask), "holds the value 255"),
        (lambda mask: np.where(mask == 3, 21, mask), "holds the value 21"),
        (lambda mask: mask[:, 1:], "differ in size: 40x24 and 41x24"),
    ],
)
def test_a_mask_that_the_server_would_misread_is_named_and_nothing_is_left(
    put: Put, lines: Lines, damage: Callable[[np.ndarray], np.ndarray], message: str
):
    put()
    path = prediction()
    write_mask(path, damage(read_mask(path)).astype(np.uint8), CLASSES.palette)
    assert main(EXPORT) == 2
    assert message in lines.messages[-1]
    assert "2008_000007.png" in lines.messages[-1]
    assert list(Path("exports/voc").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names, masks: names.pop(), "holds 1 masks of 2 images"),
        (lambda names, masks: names.append(names[0]), "holds 2 masks of 2 images"),
        (lambda names, masks: masks.update(b=masks["b"].convert("RGB")), "b.png in .* is no PNG with the palette"),
        (lambda names, masks: masks["b"].putpalette([9] * 768), "b.png in .* is no PNG with the palette"),
        (lambda names, masks: masks["b"].putpixel((0, 0), 255), "b.png in .* holds the value 255"),
        (lambda names, masks: masks.update(b=masks["b"].crop((0, 0, 3, 4))), "b.png in .* differ in size: 3x4 and 4x4"),
    ],
)
def test_a_finished_tar_that_is_wrong_is_noticed(tmp_path: Path, change: Callable[..., object], message: str):
    names, masks = ["a", "b"], {}
    for name in names:
        masks[name] = Image.fromarray(np.zeros((4, 4), np.uint8))
        masks[name].putpalette(CLASSES.palette.tobytes())
    change(names, masks)
    for name, image in masks.items():
        image.save(tmp_path / f"{name}.png")
    with tarfile.open(tmp_path / "made.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / f"{name}.png", arcname=f"{name}.png")
    with pytest.raises(MaskError, match=message):
        voc_server.check_archive(tmp_path / "made.tar", {"a.png": (4, 4), "b.png": (4, 4)})


def test_the_finished_tar_is_checked_and_a_stopped_export_leaves_nothing(
    put: Put, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    put()
    seen: list[str] = []

    def interrupt(archive: Path, sizes: dict[str, tuple[int, int]]) -> None:
        with tarfile.open(archive) as tar:
            seen.extend(tar.getnames())
        raise KeyboardInterrupt

    monkeypatch.setattr(voc_server, "check_archive", interrupt)
    assert main(EXPORT) == 130
    assert sorted(seen) == sorted(f"{PLACE}/{name}.png" for name in TEST)
    assert list(Path("exports/voc").iterdir()) == []


def test_what_the_server_does_not_score_is_refused(put: Put, lines: Lines):
    put()
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos}\n")
    for arguments, message in [
        (["--data", "own.yaml"], "scores the 21 classes of VOC 2012, but photos has others"),
        (["--data", "microworld"], "but microworld has others"),
        ([*DATA, "--split", "train"], "Expected --split test or val for the VOC server, but got 'train'"),
    ]:
        assert main(["export", "--to", "voc-server", *arguments]) == 2
        assert message in lines.messages[-1]
    assert main(["export", "--to", "cityscapes"]) == 2
    assert "There is no --to 'cityscapes'. Known: voc-server, coco" in lines.messages[-1]
    Path("VOC2012/ImageSets/Segmentation/test.txt").unlink()
    assert main(EXPORT) == 2
    assert "voc in VOC2012 has no test split" in lines.messages[-1]
