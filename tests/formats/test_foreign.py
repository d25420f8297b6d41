"""Readers that are not ours read every pixel of what we write (optional: the extra `foreign`)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.export.trainer import write_trainer
from dhr_lightning.formats.table import FORMATS
from tests.formats.samples import CLASSES, SIZE, draw, mask_set


def exported(folder: Path, name: str, **options: object) -> Path:
    target = folder / name
    target.mkdir()
    FORMATS[name].write(mask_set(folder, **options), target)
    return target


def test_pycocotools_decodes_coco(tmp_path: Path):
    coco = pytest.importorskip("pycocotools.coco").COCO(exported(tmp_path, "coco") / "annotations.json")
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    seen = set()
    for image in coco.loadImgs(coco.getImgIds()):
        image_id = image["file_name"].removesuffix(".jpg")
        mask = np.zeros(SIZE, np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(image["id"])):
            name = names[one["category_id"]]
            mask[coco.annToMask(one) == 1] = 255 if name == "ignore" else CLASSES.names.index(name)
            assert one["area"] == coco.annToMask(one).sum()
        np.testing.assert_array_equal(mask, draw()[image_id])
        seen.add(image_id)
    assert seen == draw().keys()


@pytest.mark.parametrize(("name", "theirs"), [("voc", "voc_segmentation"), ("cvat", "voc_segmentation"), ("coco",) * 2])
def test_datumaro_reads_voc_cvat_and_coco(tmp_path: Path, name: str, theirs: str):
    datumaro = pytest.importorskip("datumaro")
    source = exported(tmp_path, name)
    if name == "coco":  # its layout wants the file in a folder of annotations
        (source / "annotations").mkdir()
        shutil.move(source / "annotations.json", source / "annotations" / "instances_train.json")
    dataset = datumaro.Dataset.import_from(str(source), theirs)
    labels = dataset.categories()[datumaro.AnnotationType.label]
    expected = draw()
    found = {}
    for item in dataset:
        mask = np.zeros(SIZE, np.uint8)
        for one in item.annotations:
            if one.type != datumaro.AnnotationType.mask or one.label is None:
                continue
            label = labels[one.label].name
            mask[one.image.astype(bool)] = 255 if label == "ignore" else CLASSES.names.index(label)
        found[item.id] = mask
    assert len(found) >= len(expected) - 1
    for image_id, mask in found.items():
        np.testing.assert_array_equal(mask, expected[image_id], err_msg=image_id)


def test_supervision_reads_coco(tmp_path: Path):
    supervision = pytest.importorskip("supervision")
    source = exported(tmp_path, "coco", without=("empty",))
    content = json.loads((source / "annotations.json").read_text())
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(source / "images"),
        annotations_path=str(source / "annotations.json"),
        force_masks=True,
    )
    assert len(dataset) == len(content["images"])
    for path, _, detections in dataset:
        image_id = Path(path).relative_to(source / "images").with_suffix("").as_posix()
        mask = np.zeros(SIZE, np.uint8)
        for pixels, number in zip(detections.mask, detections.class_id, strict=True):
            name = dataset.classes[number]
            mask[pixels] = 255 if name == "ignore" else CLASSES.names.index(name)
        np.testing.assert_array_equal(mask, draw()[image_id], err_msg=image_id)


def test_label_studios_own_decoder_reads_the_brush_strokes(tmp_path: Path):
    brush = pytest.importorskip("label_studio_converter.brush")
    tasks = json.loads((exported(tmp_path, "labelstudio") / "tasks.json").read_text())
    assert len(tasks) == len(draw())
    for task in tasks:
        image_id = task["data"]["file"].removesuffix(".jpg")
        mask = np.zeros(SIZE, np.uint8)
        for one in task["predictions"][0]["result"]:
            pixels = brush.decode_rle(one["value"]["rle"]).reshape(*SIZE, 4)[..., 3] > 0
            name = one["value"]["brushlabels"][0]
            mask[pixels] = 255 if name == "ignore" else CLASSES.names.index(name)
        np.testing.assert_array_equal(mask, draw()[image_id])


def test_label_studios_own_strokes_are_read(tmp_path: Path):
    brush = pytest.importorskip("label_studio_converter.brush")
    from dhr_lightning.formats.labelstudio import decode_rle

    for mask in draw().values():
        theirs = brush.mask2rle((mask == 1).astype(np.uint8) * 255)
        np.testing.assert_array_equal(decode_rle(theirs, SIZE, where="x"), mask == 1)


def test_supervision_reads_yolo_polygons(tmp_path: Path):
    supervision = pytest.importorskip("supervision")
    pytest.importorskip("cv2")
    source = exported(tmp_path, "yolo", without=("noise", "stripes", "deep/er/ignored", "empty", "holes"))
    dataset = supervision.DetectionDataset.from_yolo(
        str(source / "images"), str(source / "labels"), str(source / "data.yaml"), force_masks=True
    )
    assert list(dataset.classes) == list(CLASSES.tag_names)
    ((_, _, detections),) = list(dataset)
    assert dataset.classes[detections.class_id[0]] == "traffic light"
    assert detections.mask[0].mean() > 0.99


def test_a_dataset_of_torchvision_pairs_photos_and_masks(tmp_path: Path):
    """The hand-off to trainers: images and masks in two folders with the same names."""
    from torchvision.datasets import VOCSegmentation

    source = exported(tmp_path, "voc")
    place = tmp_path / "root" / "VOCdevkit" / "VOC2012"
    shutil.copytree(source, place)
    shutil.copy(place / "ImageSets/Segmentation/default.txt", place / "ImageSets/Segmentation/train.txt")
    dataset = VOCSegmentation(str(tmp_path / "root"), year="2012", image_set="train")
    assert len(dataset) == len(draw())
    for (photo, mask), expected in zip(dataset, draw().values(), strict=True):
        assert photo.size == SIZE[::-1]
        np.testing.assert_array_equal(np.array(mask), expected)


def trainer_folder(tmp_path: Path) -> Path:
    target = tmp_path / "trainer"
    target.mkdir()
    write_trainer(mask_set(tmp_path), [], target)
    return target


def test_datasets_of_hugging_face_pair_photos_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    source = trainer_folder(tmp_path)
    rows = datasets.load_dataset("imagefolder", data_dir=str(source), cache_dir=str(tmp_path / "cache"))["train"]
    lines = (source / "train" / "metadata.jsonl").read_text().splitlines()
    names = [json.loads(line)["file_name"].removeprefix("images/").removesuffix(".jpg") for line in lines]
    assert sorted(names) == sorted(draw())
    for name, row in zip(names, rows, strict=True):
        np.testing.assert_array_equal(np.array(row["label"]), draw()[name])
        assert row["image"].size == SIZE[::-1]


def test_datumaro_reads_the_layout_of_trainers(tmp_path: Path):
    datumaro = pytest.importorskip("datumaro")
    dataset = datumaro.Dataset.import_from(str(trainer_folder(tmp_path) / "train"), "common_semantic_segmentation")
    assert len(dataset) == len(draw())
    for item in dataset:
        mask = np.full(SIZE, 200, np.uint8)
        for one in item.annotations:
            mask[one.image.astype(bool)] = one.label
        (expected,) = [value for name, value in draw().items() if name.rpartition("/")[2] == item.id]
        np.testing.assert_array_equal(mask, expected)


def test_pycocotools_fills_polygons_to_the_pixel(tmp_path: Path):
    pytest.importorskip("cv2")
    from scipy.ndimage import label

    coco = pytest.importorskip("pycocotools.coco").COCO(exported(tmp_path, "coco-polygons") / "annotations.json")
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = draw()[image["file_name"].removesuffix(".jpg")]
        for one in coco.loadAnns(coco.getAnnIds(image["id"])):
            name = names[one["category_id"]]
            pixels = mask == (255 if name == "ignore" else CLASSES.names.index(name))
            outside, _ = label(np.pad(~pixels, 1, constant_values=True))
            filled = (outside != outside[0, 0])[1:-1, 1:-1]
            np.testing.assert_array_equal(coco.annToMask(one) == 1, filled)
            assert one["area"] == pixels.sum()
