from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.errors import DataError, DHRError
from dhr_lightning.importing.tags import match_keys, read_list
from tests.data.datasets.folder_samples import names, write_photo
from tests.importing.test_import_pickle import save
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


def vector(*tags: str) -> np.ndarray:
    return np.array([name in tags for name in VOC_CLASSES[1:]], np.float32)


@pytest.mark.parametrize(
    "text",
    [
        "2007_000032\n2007_000039\n",
        "\ufeff2007_000032.jpg\r\n\r\n2007_000039.JPG\r\n",
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\nJPEGImages/2007_000039.jpg mask.png\n",
    ],
)
def test_lists_of_the_family_name_the_same_images(tmp_path: Path, text: str):
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    assert [(image.id, image.tags) for image in read_list(tmp_path / "train.txt")] == [
        ("2007_000032", None),
        ("2007_000039", None),
    ]


def test_a_list_without_or_with_repeated_images_is_refused(tmp_path: Path):
    path = tmp_path / "train.txt"
    path.write_text("a\n\na.jpg 3\n")
    with pytest.raises(DataError, match=r"train\.txt, line 3 repeats 'a' of line 1"):
        read_list(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        read_list(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path)


def test_keys_are_matched_however_the_family_spells_ids():
    known = {"2007_000032", "000000000009", "COCO_train2014_000000000025", "own"}
    found, lost = match_keys([2007000032, np.int32(9), "25", "own", "other", 77], known)
    assert list(found.values()) == ["2007_000032", "000000000009", "COCO_train2014_000000000025", "own"]
    assert lost == ["other", 77]
    assert match_keys([2007000032, "x", 9], {}) == ({2007000032: "2007_000032", "x": "x", 9: "9"}, [])


def test_tags_of_a_release_become_a_table_that_the_folder_reads(tmp_path: Path, lines: Lines):
    for name in ("2007_000032", "2007_000039"):
        write_photo(tmp_path / "images" / f"{name}.jpg")
    content = {2007000032: vector("cat", "sofa"), 2007000039: vector("dog"), 2008000001: vector("cat")}
    source = save(tmp_path / "cls_labels.npy", content)
    command = ["import", "tags", str(source), "--data", "voc", "--root", str(tmp_path)]
    assert main(command) == 0
    assert "1 of 3 entries match no image, first 2008000001" in lines.text
    assert names(tmp_path) == {"2007_000032": ["cat", "sofa"], "2007_000039": ["dog"]}
    assert main(command) == 2
    assert lines.messages[-1].endswith("tags.csv exists. Choose another --output, or overwrite it with --force.")
    (tmp_path / "list.txt").write_text("2007_000032.jpg 7 17\n2007_000039.jpg 11\n")
    command[2] = str(tmp_path / "list.txt")
    assert main([*command, "--force"]) == 0
    assert names(tmp_path) == {"2007_000032": ["cat", "sofa"], "2007_000039": ["dog"]}


def test_tags_are_compared_with_those_of_the_dataset(tmp_path: Path, lines: Lines):
    for name in ("a", "b", "c"):
        write_photo(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "tags.csv").write_text("image,tags\na,cat\nb,dog;sofa\nc,cat\n")
    config = tmp_path / "own.yaml"
    classes = ", ".join(VOC_CLASSES[1:])
    config.write_text(f"data:\n  dataset: folder\n  root: {tmp_path}\n  options: {{classes: [{classes}]}}\n")
    (tmp_path / "list.txt").write_text("a 7\nb 11\nc 11\n")
    command = ["import", "tags", str(tmp_path / "list.txt"), "--data", str(config), "--force"]
    assert main(command) == 0
    assert (
        "tags differ on 2 of 3 images, first b: 1 (dog 1) only in the imported file, 2 (sofa 1, cat 1) only in the "
        "dataset" in lines.text
    )
    assert main(command) == 0
    assert "both sources of tags agree on all 3 images that they share" in lines.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros(80)}, r"entry 'a' has shape \(80,\).*expected 0 and 1 for the 20 classes"),
        ({"a": np.full(20, 0.5)}, r"values \[0\.5\]"),
        ({"other": vector("cat")}, r"None of the 1 entries .* belongs to an image"),
        ("a 20\n", r"line 1: tags \(20,\) count 20 classes from 0"),
        ("a\n", r"line 1 names an image and no tag numbers"),
    ],
)
def test_tags_that_do_not_fit_the_class_list_are_refused(tmp_path: Path, lines: Lines, content: object, message: str):
    write_photo(tmp_path / "images" / "a.jpg")
    source = tmp_path / "list.txt"
    if isinstance(content, str):
        source.write_text(content)
    else:
        source = save(tmp_path / "cls_labels.npy", content)
    assert main(["import", "tags", str(source), "--data", "voc", "--root", str(tmp_path)]) == 2
    with pytest.raises(DHRError, match=message):
        raise DHRError(lines.messages[-1])
    assert not (tmp_path / "tags.csv").exists()


def test_an_id_list_becomes_a_split(tmp_path: Path, lines: Lines):
    (tmp_path / "train_aug.txt").write_text("/JPEGImages/a.jpg /SegmentationClassAug/a.png\n")
    command = ["import", "ids", str(tmp_path / "train_aug.txt"), "--data", "folder", "--root", str(tmp_path)]
    assert main([*command, "--split", "val"]) == 0
    assert (tmp_path / "val.txt").read_text() == "a\n"
    assert main(["import", "words", "x"]) == 2
    assert "Expected a kind of cam, mask" in lines.messages[-1]


def write_official(root: Path, names: str = '["background", "cat", "dog"]', ignore: int = 255) -> Path:
    for domain, tags in (("train_aug", {"a": "cat", "b": "dog"}), ("validation", {"c": "cat"})):
        (root / domain / "xml").mkdir(parents=True)
        for image_id, tag in tags.items():
            write_photo(root / domain / "image" / f"{image_id}.jpg", [tag])
            text = f"<annotation><object><name>{tag}</name></object></annotation>"
            (root / domain / "xml" / f"{image_id}.xml").write_text(text)
    (root / f"{root.name}.json").write_text(f'{{"names": {names}, "ignore": {ignore}}}')
    return root


def test_the_layout_of_the_official_release_is_read_in_place(tmp_path: Path):
    root = write_official(tmp_path / "VOC2012")
    info = resolve_dataset({"dataset": "official", "root": str(root), "options": {}})
    assert (info.name, info.classes.names, info.classes.offset) == ("VOC2012", ("background", "cat", "dog"), 1)
    train, val = (info.read(root, split, info.classes) for split in ("train", "val"))
    assert [(record.id, record.tags) for record in train] == [("a", (1,)), ("b", (2,))]
    assert [(record.id, record.gt_mask) for record in val] == [("c", None)]
    with pytest.raises(DataError, match=r"Split 'test' has no images: expected .*test/image"):
        info.read(root, "test", info.classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "3"}, "cannot be read as a class list"),
        ({"ignore": 0}, "ignores mask value 0, but here 255 is ignored"),
    ],
)
def test_an_official_class_list_of_another_form_is_refused(tmp_path: Path, change: dict[str, object], message: str):
    root = write_official(tmp_path / "ADE2016", **change)
    with pytest.raises(DataError, match=message):
        resolve_dataset({"dataset": "official", "root": str(root)})


def test_official_names_without_background_have_none(tmp_path: Path):
    root = write_official(tmp_path / "ADE2016", '["cat", "dog"]')
    info = resolve_dataset({"dataset": "official", "root": str(root), "options": {"name": "ade_official"}})
    assert (info.name, info.classes.has_background) == ("ade_official", False)
    assert info.read(root, "train", info.classes)[1].tags == (1,)


def test_keys_and_images_may_spell_one_name_in_two_unicode_forms():
    known = ["Tu\u0308r"]  # as some file systems keep it
    assert match_keys(["T\u00fcr", "Tu\u0308r", "Tor"], known) == (
        {"T\u00fcr": known[0], "Tu\u0308r": known[0]},
        ["Tor"],
    )
