import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.labels import CONTEXT_CLASSES, CONTEXT_IDS
from dhr_lightning.data.preparation.context import prepare_context
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError, DataError, MaskError
from tests.data.preparation.benchmark_layouts import SIZE, runs, values_of, write_context, write_grey, write_photo

CLASSES = ClassSet(CONTEXT_CLASSES, has_background=False)
AEROPLANE, BAG, WOOD, OTHER = 2, 9, 458, 300  # of the 459-class list; OTHER is none of the 59


def region(rows: slice) -> dict[str, Any]:
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[rows] = True
    return runs(mask)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    train = {
        "2008_000002": [(AEROPLANE, region(slice(0, 6))), (WOOD, region(slice(4, 6))), (OTHER, region(slice(8, 9)))],
        "2008_000003": [(BAG, region(slice(0, 10)))],
    }
    write_context(tmp_path, {"train": train, "val": {"2010_006054": [(BAG, region(slice(0, 1)))]}})
    return tmp_path


def test_there_are_59_classes_in_the_order_of_their_official_ids():
    assert CLASSES.num_classes == CLASSES.num_tags == 59
    assert list(CONTEXT_IDS) == sorted(CONTEXT_IDS)
    assert list(CONTEXT_CLASSES) == sorted(CONTEXT_CLASSES)


def test_regions_are_painted_in_order_and_the_rest_is_ignored(context: Path):
    prepare_context(context, CLASSES, {})
    mask = values_of(context / "prepared" / "masks" / "train" / "2008_000002.png")
    np.testing.assert_array_equal(mask[:, 0], [0, 0, 0, 0, 58, 58, 255, 255, 255, 255])
    assert [record.tags for record in read_records("context", context, "train")] == [(0, 58), (1,)]
    assert [record.id for record in read_records("context", context, "val")] == ["2010_006054"]


def test_converted_masks_give_the_same_files(context: Path):
    prepare_context(context, CLASSES, {})
    expected = values_of(context / "prepared" / "masks" / "train" / "2008_000002.png")
    (context / "trainval_merged.json").unlink()
    (context / "prepared" / "masks").rename(context / "first")
    (context / "prepared").rename(context / "second")
    lists = context / "ImageSets" / "SegmentationContext"
    lists.mkdir(parents=True)
    for split, names in {"train": ["2008_000003", "2008_000002"], "val": ["2010_006054"]}.items():
        (lists / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            converted = values_of(context / "first" / split / f"{name}.png")
            shifted = np.where(converted == 255, 0, converted + 1).astype(np.uint8)
            write_grey(context / "SegmentationClassContext" / f"{name}.png", shifted)
    prepare_context(context, CLASSES, {})
    np.testing.assert_array_equal(values_of(context / "prepared" / "masks" / "train" / "2008_000002.png"), expected)
    assert (context / "prepared" / "train.csv").read_text() == (context / "second" / "train.csv").read_text()
    write_grey(context / "SegmentationClassContext" / "2010_006054.png", np.full((SIZE[1], SIZE[0]), 60, np.uint8))
    with pytest.raises(MaskError, match=r"2010_006054\.png holds ids .*: 60"):
        prepare_context(context, CLASSES, {})


def test_names_in_another_order_than_the_ids_are_refused(context: Path):
    path = context / "trainval_merged.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "bicycle"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="calls category 9 'bicycle', expected 'bag'"):
        prepare_context(context, CLASSES, {})


def test_other_spellings_of_a_name_are_the_same_class(context: Path):
    path = context / "trainval_merged.json"
    content = json.loads(path.read_text())
    for row in content["categories"]:
        row["name"] = {"table": "diningtable", "tvmonitor": "tv monitor"}.get(row["name"], row["name"])
    path.write_text(json.dumps(content))
    prepare_context(context, CLASSES, {})
    assert len(read_records("context", context, "train")) == 2


def test_a_region_of_another_size_names_the_annotation(context: Path):
    path = context / "trainval_merged.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 11
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation 0 in trainval_merged\.json .* its image is 11x12"):
        prepare_context(context, CLASSES, {})


def test_photos_that_are_not_there_are_left_out_but_not_all(context: Path):
    photo = context / "JPEGImages" / "2008_000003.jpg"
    photo.unlink()
    prepare_context(context, CLASSES, {})
    assert len(read_records("context", context, "train")) == 1
    (context / "JPEGImages" / "2010_006054.jpg").unlink()
    with pytest.raises(DataError, match="None of the 1 photos of 'val'"):
        prepare_context(context, CLASSES, {})
    write_photo(photo)


def test_a_foreign_file_and_options_are_refused(context: Path):
    with pytest.raises(ConfigError, match=r"no data\.options"):
        prepare_context(context, CLASSES, {"x": 1})
    (context / "trainval_merged.json").write_text("{}")
    with pytest.raises(DataError, match="lacks images, annos_segmentation or categories"):
        prepare_context(context, CLASSES, {})
