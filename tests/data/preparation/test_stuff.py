from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.labels import COCO_CLASSES, COCO_IDS, STUFF_CLASSES, STUFF_IDS
from dhr_lightning.data.preparation.stuff import prepare_stuff
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import MaskError
from tests.data.preparation.benchmark_layouts import SIZE, values_of, write_grey, write_photo

CLASSES = ClassSet(STUFF_CLASSES, has_background=False)


def raw(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), (SIZE[1], SIZE[0]))


def write_stuff(root: Path, **masks: np.ndarray) -> Path:
    for split, mask in masks.items():
        write_photo(root / "images" / f"{split}2017" / "000000000009.jpg")
        write_grey(root / "annotations" / f"{split}2017" / "000000000009.png", mask)
    return root


def test_there_are_171_classes_and_the_things_are_those_of_coco():
    assert CLASSES.num_classes == CLASSES.num_tags == 171 == len(STUFF_IDS)
    assert STUFF_CLASSES[:80] == COCO_CLASSES[1:]
    assert [value + 1 for value in STUFF_IDS[:80]] == list(COCO_IDS)
    assert (STUFF_CLASSES[80], STUFF_CLASSES[170]) == ("banner", "wood")


def test_every_id_is_packed_and_unlabelled_is_ignored(tmp_path: Path):
    tall = np.resize(np.array([*STUFF_IDS, 255], np.uint8), (43, 4))
    root = write_stuff(tmp_path, train=tall, val=raw(91, 255))
    prepare_stuff(root, CLASSES, {})
    mask = values_of(root / "prepared" / "masks" / "train" / "000000000009.png")
    np.testing.assert_array_equal(mask.ravel(), [*range(171), 255])
    assert read_records("stuff", root, "train")[0].tags == tuple(range(171))
    assert read_records("stuff", root, "val")[0].tags == (80,)


@pytest.mark.parametrize("hole", [11, 90, 182, 254])
def test_an_id_that_was_never_annotated_is_refused(tmp_path: Path, hole: int):
    root = write_stuff(tmp_path, train=raw(0, hole), val=raw(0))
    with pytest.raises(MaskError, match=rf"train2017.000000000009\.png holds ids .*: {hole} \(60 px\)"):
        prepare_stuff(root, CLASSES, {})


def test_maps_that_another_tool_converted_are_passed_over(tmp_path: Path):
    root = write_stuff(tmp_path, train=raw(181), val=raw(0))
    write_grey(root / "annotations" / "train2017" / "000000000009_labelTrainIds.png", raw(3))
    prepare_stuff(root, CLASSES, {})
    (record,) = read_records("stuff", root, "train")
    assert record.id == "000000000009"
    assert record.tags == (170,)
