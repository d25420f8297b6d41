from pathlib import Path

import numpy as np
from PIL import Image

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.tags import mask_tags, tag_disagreement

CLASSES = ClassSet(("background", "cat", "dog", "car"))


def record(folder: Path, name: str, tags: tuple[int, ...], *values: int) -> Record:
    path = folder / f"{name}.png"
    Image.fromarray(np.array([values], np.uint8)).save(path)
    return Record(name, folder / f"{name}.jpg", tags, path)


def test_tags_of_a_mask_are_its_foreground_classes():
    mask = np.array([[0, 255, 3], [1, 1, 9]], np.uint8)
    assert mask_tags(mask, CLASSES) == (1, 3)
    assert mask_tags(mask, ClassSet(CLASSES.names, has_background=False)) == (0, 1, 3)


def test_disagreement_is_counted_by_image_and_class(tmp_path: Path):
    records = [
        record(tmp_path, "same", (1,), 0, 1, 255),
        record(tmp_path, "tag", (1, 2), 1, 1),
        record(tmp_path, "both", (1,), 2, 3),
        Record("none", tmp_path / "none.jpg", (1,)),
    ]
    found = tag_disagreement(records, CLASSES)
    assert found.compared == 3
    assert found.differing == ("tag", "both")
    assert found.tag_only == {"dog": 1, "cat": 1}
    assert found.mask_only == {"dog": 1, "car": 1}
    assert "differ on 2 of 3 images, first tag: 2 tags without a pixel (cat 1, dog 1)" in found.describe()
    assert tag_disagreement(records[:1], CLASSES).describe() == "tags and masks agree on all 1 images that have a mask"
