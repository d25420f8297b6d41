import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.labels import COCO_CLASSES, COCO_IDS
from dhr_lightning.data.preparation.coco import paint, prepare_coco
from dhr_lightning.data.registry import read_records
from dhr_lightning.data.untagged import apply_untagged_policy
from dhr_lightning.errors import ConfigError, DataError
from tests.data.preparation.benchmark_layouts import SIZE, box, runs, values_of, write_coco

CLASSES = ClassSet(COCO_CLASSES)
PERSON, DOG, TOOTHBRUSH = 1, 18, 90  # category ids; class values 1, 17 and 80


def crowd_region() -> dict[str, Any]:
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[:, :4] = True
    return runs(mask)


def instance(category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"category_id": category, "segmentation": segmentation, "iscrowd": crowd}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    train = {
        9: [instance(DOG, box(4, 4, 6, 6)), instance(PERSON, box(2, 2, 9, 9))],
        25: [],
        30: [instance(PERSON, crowd_region(), crowd=1), instance(TOOTHBRUSH, box(3, 1, 6, 3))],
        31: [instance(DOG, [[1, 1, 2, 2]])],
    }
    write_coco(tmp_path, {"train2014": train, "val2014": {42: [instance(PERSON, box(0, 0, 3, 3))]}})
    return tmp_path


def prepared(root: Path, name: str) -> np.ndarray:
    return values_of(root / "prepared" / "masks" / "train" / f"COCO_train2014_{int(name):012d}.png")


def test_ids_are_contiguous_and_in_the_order_of_the_official_ones():
    assert len(COCO_IDS) == 80 == CLASSES.num_tags
    assert COCO_IDS[0] == 1
    assert COCO_IDS[-1] == 90
    assert list(COCO_IDS) == sorted(COCO_IDS)
    assert CLASSES.names[1] == "person"
    assert CLASSES.names[17] == "dog"
    assert CLASSES.names[80] == "toothbrush"


def test_small_objects_lie_on_top_of_large_ones_whatever_their_order(coco: Path):
    prepare_coco(coco, CLASSES, {})
    mask = prepared(coco, "9")
    assert mask.shape == (SIZE[1], SIZE[0])
    assert (mask[4:6, 4:6] == 17).all()
    assert (mask == 17).sum() == 4
    assert (mask == 1).sum() == 49 - 4
    assert (mask == 0).sum() == 120 - 49


@pytest.mark.parametrize(("crowd", "value"), [("ignore", 255), ("class", 1)])
def test_crowds_lie_at_the_bottom_and_are_ignored_or_counted(coco: Path, crowd: str, value: int):
    prepare_coco(coco, CLASSES, {"crowd": crowd})
    mask = prepared(coco, "30")
    assert (mask[:, :3] == value).all()
    assert (mask == value).sum() == 40 - 2
    assert (mask[1:3, 3:6] == 80).all()


def test_another_crowd_rule_makes_the_masks_again(coco: Path):
    prepare_coco(coco, CLASSES, {"crowd": "ignore"})
    prepare_coco(coco, CLASSES, {"crowd": "class"})
    assert 255 not in prepared(coco, "30")


def test_tags_are_the_classes_of_all_annotations_crowds_included(coco: Path):
    prepare_coco(coco, CLASSES, {})
    records = read_records("coco", coco, "train")
    assert [record.tags for record in records] == [(1, 17), (), (1, 80), (17,)]
    assert next(record.id for record in records) == "COCO_train2014_000000000009"
    assert all(record.image.is_file() and record.gt_mask and record.gt_mask.is_file() for record in records)
    table = (coco / "prepared" / "train.csv").read_text().splitlines()
    assert table[1].endswith(",person;dog,instances_train2014.json")


def test_images_without_objects_follow_the_policy_for_untagged_images(coco: Path):
    prepare_coco(coco, CLASSES, {})
    kept, untagged = apply_untagged_policy(read_records("coco", coco, "train"), CLASSES, policy="drop")
    assert untagged == 1
    assert len(kept) == 3


def test_of_equal_objects_the_later_is_on_top():
    rows = [{"id": n, **instance(category, box(0, 0, 2, 2))} for n, category in [(8, DOG), (5, PERSON)]]
    assert (paint(rows, size=(2, 2), crowd="ignore", where="x") == 17).all()


def test_photos_that_are_not_there_are_left_out(coco: Path):
    (coco / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    prepare_coco(coco, CLASSES, {})
    assert len(read_records("coco", coco, "train")) == 3


def test_without_any_photo_nothing_is_prepared(coco: Path):
    for photo in (coco / "val2014").iterdir():
        photo.unlink()
    with pytest.raises(DataError, match=r"None of the 1 images of .*instances_val2014\.json is in .*val2014"):
        prepare_coco(coco, CLASSES, {})


def change(root: Path, edit: Any) -> None:
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_category_in_a_hole_is_refused(coco: Path):
    change(coco, lambda content: content["annotations"][0].update(category_id=12))
    with pytest.raises(DataError, match=r"category_id 12, which COCO does not have"):
        prepare_coco(coco, CLASSES, {})


def test_a_file_that_counts_from_zero_is_refused(coco: Path):
    change(coco, lambda c: c.update(categories=[{**row, "id": row["id"] - 1} for row in c["categories"]]))
    with pytest.raises(DataError, match=r"numbers its categories unlike COCO, first \(0, 'person'\)"):
        prepare_coco(coco, CLASSES, {})


def test_annotations_of_images_that_are_not_listed_are_refused(coco: Path):
    change(coco, lambda content: content["annotations"][0].update(image_id=77))
    with pytest.raises(DataError, match="1 images that it does not list, first id 77"):
        prepare_coco(coco, CLASSES, {})


@pytest.mark.parametrize(
    ("part", "field"),
    [("annotations", "id"), ("annotations", "category_id"), ("annotations", "segmentation"), ("images", "file_name")],
)
def test_an_entry_without_a_field_is_named(coco: Path, part: str, field: str):
    change(coco, lambda content: content[part][1].pop(field))
    with pytest.raises(DataError, match=rf"{part}\[1\] in .*instances_train2014\.json lacks {field}"):
        prepare_coco(coco, CLASSES, {})


def test_a_truncated_or_foreign_file_is_refused(coco: Path):
    path = coco / "annotations" / "instances_train2014.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"instances_train2014\.json is not valid JSON"):
        prepare_coco(coco, CLASSES, {})
    path.write_text("[]")
    with pytest.raises(DataError, match="lacks images, annotations or categories"):
        prepare_coco(coco, CLASSES, {})


@pytest.mark.parametrize("options", [{"crowd": "skip"}, {"crowds": "ignore"}])
def test_unknown_options_are_refused(coco: Path, options: dict[str, str]):
    with pytest.raises(ConfigError, match="crowd: ignore or class"):
        prepare_coco(coco, CLASSES, options)
