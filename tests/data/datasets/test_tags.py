import numpy as np

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.tags import mask_tags

CLASSES = ClassSet(("background", "cat", "dog", "car"))


def test_tags_of_a_mask_are_its_foreground_classes():
    mask = np.array([[0, 255, 3], [1, 1, 9]], np.uint8)
    assert mask_tags(mask, CLASSES) == (1, 3)
    assert mask_tags(mask, ClassSet(CLASSES.names, has_background=False)) == (0, 1, 3)
