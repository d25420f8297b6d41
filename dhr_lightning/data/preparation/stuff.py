"""COCO-Stuff 164k: 80 things and 91 stuff classes on the photos of COCO 2017, no background."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import ClassSet, refuse_options
from dhr_lightning.data.datasets.labels import STUFF_IDS
from dhr_lightning.data.preparation.official_masks import id_table, prepare_mask_folders
from dhr_lightning.data.preparation.prepared_test import prepare_test

_FOLDERS = {
    "train": ("images/train2017", "annotations/train2017"),
    "val": ("images/val2017", "annotations/val2017"),
}
_TEST = "images/test2017"


def prepare_stuff(root: Path, classes: ClassSet, options: Mapping[str, Any]) -> None:
    """Write tags and masks from the maps of `stuffthingmaps_trainval2017.zip`.

    Values 0-181 with eleven holes become 0-170, and 255 (unlabelled) stays. `*_labelTrainIds.png`, which other tools
    leave beside the official maps, are passed over. Photos in `images/test2017` are the test split.

    Raises:
        ConfigError: if there is any option.
        DataError: if a split is empty.
        MaskError: if a mask holds a value of the holes.
    """
    refuse_options("stuff", options)
    table = id_table(STUFF_IDS, ignored=(255,))
    prepare_mask_folders(root, classes, _FOLDERS, table, skip_suffix="_labelTrainIds")
    prepare_test(root, _TEST, classes)
