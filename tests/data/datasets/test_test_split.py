"""The test split of every reader: images alone, and only where the files have one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import SPLITS, TAGGED_SPLITS, DatasetInfo
from dhr_lightning.data.datasets.prepared import FOLDER
from dhr_lightning.data.preparation.ade import prepare_ade
from dhr_lightning.data.preparation.coco import prepare_coco
from dhr_lightning.data.preparation.stuff import prepare_stuff
from dhr_lightning.data.registry import get_dataset, resolve_dataset
from dhr_lightning.errors import DataError
from dhr_lightning.inspection.doctor import examine
from dhr_lightning.provenance.identity import StepIdentity
from tests.data.datamodules import make_datamodule, spec_of
from tests.data.datasets.folder_samples import read, resolve, write_folder
from tests.data.preparation.benchmark_layouts import box, write_coco, write_grey, write_photo

PHOTOS = [f"{name}.jpg" for name in "abcdef"]


def write_masks_as_photos(root: Path, folders: dict[str, tuple[str, str]]) -> None:
    for name, (photos, masks) in folders.items():
        write_photo(root / photos / f"{name}.jpg")
        write_grey(root / masks / f"{name}.png", np.full((10, 12), 1, np.uint8))


def make_voc(root: Path, test: bool) -> DatasetInfo:
    for split in TAGGED_SPLITS if not test else SPLITS:
        write_photo(root / "JPEGImages" / f"{split}_1.jpg")
        write_grey(root / "SegmentationClass" / f"{split}_1.png", np.full((10, 12), 8, np.uint8))
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"{split}_1\n")
        (root / "Annotations").mkdir(exist_ok=True)
        annotation = "<annotation><object><name>cat</name></object></annotation>"
        (root / "Annotations" / f"{split}_1.xml").write_text(annotation)
    return get_dataset("voc")


def make_own(root: Path, test: bool) -> DatasetInfo:
    names = [f"{split}_1" for split in (SPLITS if test else TAGGED_SPLITS)]
    rows = "".join(f"{name},cat,{name.removesuffix('_1')}\n" for name in names)
    write_folder(root, f"image,tags,split\n{rows}", [f"{name}.jpg" for name in names])
    for name in names:
        write_grey(root / "masks" / f"{name}.png", np.full((16, 24), 1, np.uint8))
    return resolve_dataset({"dataset": "folder", "root": str(root)})


def make_official(root: Path, test: bool) -> DatasetInfo:
    for split, domain in {"train": "train", "val": "validation", **({"test": "test"} if test else {})}.items():
        write_photo(root / domain / "image" / f"{split}_1.jpg")
        write_grey(root / domain / "mask" / f"{split}_1.png", np.full((10, 12), 1, np.uint8))
        (root / domain / "xml").mkdir()
        annotation = "<annotation><object><name>cat</name></object></annotation>"
        (root / domain / "xml" / f"{split}_1.xml").write_text(annotation)
    (root / f"{root.name}.json").write_text(json.dumps({"names": ["background", "cat"]}))
    return resolve_dataset({"dataset": "official", "root": str(root)})


def make_ade(root: Path, test: bool) -> DatasetInfo:
    folders = {"train_1": "training", "val_1": "validation"}
    write_masks_as_photos(root, {name: (f"images/{at}", f"annotations/{at}") for name, at in folders.items()})
    if test:
        write_photo(root / "images" / "testing" / "test_1.jpg")
    prepare_ade(root, get_dataset("ade").classes, {})
    return get_dataset("ade")


def make_stuff(root: Path, test: bool) -> DatasetInfo:
    folders = {f"{split}_1": f"{split}2017" for split in TAGGED_SPLITS}
    write_masks_as_photos(root, {name: (f"images/{at}", f"annotations/{at}") for name, at in folders.items()})
    if test:
        write_photo(root / "images" / "test2017" / "test_1.jpg")
    prepare_stuff(root, get_dataset("stuff").classes, {})
    return get_dataset("stuff")


def make_coco(root: Path, test: bool) -> DatasetInfo:
    cat = {"category_id": 17, "segmentation": box(0, 0, 4, 4), "iscrowd": 0}
    write_coco(root, {"train2014": {1: [cat]}, "val2014": {2: [cat]}})
    if test:
        write_photo(root / "test2014" / "test_1.jpg")
    prepare_coco(root, get_dataset("coco").classes, {})
    return get_dataset("coco")


MAKERS = [make_voc, make_own, make_official, make_ade, make_stuff, make_coco]


@pytest.mark.parametrize("make", MAKERS)
def test_a_test_split_has_images_alone(tmp_path: Path, make: Callable[[Path, bool], DatasetInfo]):
    root = tmp_path / "data"
    info = make(root, True)
    assert info.splits(root) == SPLITS
    (record,) = info.read(root, "test", info.classes)
    assert (record.id, record.tags, record.gt_mask, record.stuff) == ("test_1", (), None, None)
    assert record.image.is_file()
    for split in TAGGED_SPLITS:
        assert all(record.tags and record.gt_mask for record in info.read(root, split, info.classes))


@pytest.mark.parametrize("make", MAKERS)
def test_without_one_there_is_no_test_split(tmp_path: Path, make: Callable[[Path, bool], DatasetInfo]):
    root = tmp_path / "data"
    info = make(root, False)
    assert info.splits(root) == TAGGED_SPLITS
    if info.name != "data":
        with pytest.raises(DataError, match="test"):
            info.read(root, "test", info.classes)


def test_the_built_in_data_and_a_folder_that_is_not_there_have_no_test_split(tmp_path: Path):
    assert get_dataset("microworld").splits(tmp_path) == TAGGED_SPLITS
    assert get_dataset("ade").splits(tmp_path / "nowhere") == TAGGED_SPLITS


def test_a_table_of_your_own_makes_the_test_split_of_a_benchmark(tmp_path: Path):
    info = make_ade(tmp_path, True)
    table = tmp_path / FOLDER / "test.csv"
    (tmp_path / FOLDER / "test.json").unlink()
    write_photo(tmp_path / "images" / "more" / "other.jpg")
    table.write_text("id,image,tags,source\nother,images/more/other.jpg,sky,me\n")
    prepare_ade(tmp_path, info.classes, {})
    (record,) = info.read(tmp_path, "test", info.classes)
    assert (record.id, record.tags) == ("other", ())


def test_test_images_of_a_folder_may_be_listed(tmp_path: Path):
    rows = "".join(f"{name},cat\n" for name in PHOTOS)
    root = write_folder(tmp_path / "own", f"image,tags\n{rows}", PHOTOS)
    (root / "test.txt").write_text("c.jpg\nd\n")
    assert resolve(root).splits(root) == SPLITS
    assert list(read(root, "test")) == ["c", "d"]
    assert list(read(root, "train")) == ["a", "b", "e", "f"]  # nothing is held out of the rest
    assert read(root, "val") == {}
    held = {split: list(read(root, split, holdout=0.5)) for split in SPLITS}
    assert sorted(held["train"] + held["val"]) == ["a", "b", "e", "f"]
    assert held["val"]
    (root / "train.txt").write_text("a\nb\n")
    assert {split: list(read(root, split)) for split in SPLITS} == {
        "train": ["a", "b"],
        "val": ["e", "f"],
        "test": ["c", "d"],
    }
    (root / "val.txt").write_text("e\n")
    assert list(read(root, "val")) == ["e"]
    (root / "val.txt").write_text("e\nd\n")
    with pytest.raises(DataError, match=r"'d' is in .*\.txt too"):
        read(root, "val")


@pytest.mark.parametrize("test", [False, True])
def test_tasks_predict_the_splits_that_the_dataset_has(tmp_path: Path, test: bool):
    root = tmp_path / "data"
    make_voc(root, test)
    data = {"dataset": "voc", "root": str(root), "workspace": str(tmp_path)}
    more = ["test"] if test else []
    for method, first in {"wss": ["train", "val"], "dhr": ["val"], "cam": ["train"]}.items():
        inputs = {"masks": "mask"} if method != "cam" else {}
        outputs = StepIdentity({"data": {**data, "method": method, "inputs": inputs}}).outputs()
        assert list(dict.fromkeys(split for _, split in outputs)) == first + (more if method != "cam" else [])
    datamodule = make_datamodule(root, tmp_path, spec_of(None, *SPLITS))
    loaders = datamodule.predict_dataloader()
    assert datamodule.predict_splits == ("train", "val", *more)
    assert [[name for batch in loader for name in batch["id"]] for loader in loaders] == [
        [f"{split}_1"] for split in datamodule.predict_splits
    ]


def test_doctor_looks_at_test_images_and_asks_nothing_of_them(tmp_path: Path):
    root = tmp_path / "data"
    info = make_voc(root, True)
    Image.new("RGB", (70, 40), (1, 2, 3)).save(root / "JPEGImages" / "val_1.jpg")
    result = examine(info, root, artifacts=tmp_path, untagged="error", workers=1)
    texts = {item.code: item.text for item in result.findings}
    assert texts["coverage-test"] == "test: 1 images, which are predicted only."
    assert not {"untagged-image", "untagged-val", "no-tags", "no-truth"} & texts.keys()
    assert set(result.counts) == set(TAGGED_SPLITS)
    assert "leaked-file" in texts  # train_1 and test_1 are the same photo
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("train_1\n")
    result = examine(info, root, artifacts=tmp_path, untagged="drop", workers=1)
    assert {item.code: item.items for item in result.findings}["shared-id"] == ("train_1",)
