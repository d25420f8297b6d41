"""ADE20K as in SceneParsing150 ("ADE 2016"): 150 classes, no background."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import ClassSet, refuse_options
from dhr_lightning.data.preparation.official_masks import id_table, prepare_mask_folders
from dhr_lightning.data.preparation.prepared_test import prepare_test

_FOLDERS = {
    "train": ("images/training", "annotations/training"),
    "val": ("images/validation", "annotations/validation"),
}
_TEST = "images/testing"


def prepare_ade(root: Path, classes: ClassSet, options: Mapping[str, Any]) -> None:
    """Write tags and masks from `annotations/{training,validation}`: value v becomes v - 1, and 0 ("other") 255.

    Photos in `images/testing` (of the archive `release_test.zip`) are the test split.

    Raises:
        ConfigError: if there is any option.
        DataError: if a split is empty.
        MaskError: if a mask holds values above 150.
    """
    refuse_options("ade", options)
    table = id_table(range(1, 151), ignored=(0,))
    prepare_mask_folders(root, classes, _FOLDERS, table)
    prepare_test(root, _TEST, classes)
