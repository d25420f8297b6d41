"""Cityscapes, as a newcomer would add it: the one file of CONTRIBUTING.md, "Add a dataset"."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, refuse_options
from dhr_lightning.data.datasets.prepared import read_prepared
from dhr_lightning.data.preparation.official_masks import id_table, prepare_masks

CLASSES = ClassSet(
    ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
     "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    has_background=False,
)  # fmt: skip
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # in the order of the classes
TABLE = id_table(IDS, ignored=sorted(set(range(34)) - set(IDS)))


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*/*{suffix}")}


def prepare_cityscapes(root: Path, options: Mapping[str, Any]) -> None:
    """Write masks of class values and the tags in them below `root/prepared`."""
    refuse_options("cityscapes", options)
    for split in ("train", "val"):
        photos = _files(root / "leftImg8bit" / split, "_leftImg8bit.png")
        masks = _files(root / "gtFine" / split, "_gtFine_labelIds.png")
        prepare_masks(root, split, CLASSES, photos=photos, masks=masks, table=TABLE)


CITYSCAPES = DatasetInfo(
    name="cityscapes",
    classes=CLASSES,
    read=partial(read_prepared, dataset="cityscapes"),
    root=Path("data/cityscapes"),
    prepare=prepare_cityscapes,
)
