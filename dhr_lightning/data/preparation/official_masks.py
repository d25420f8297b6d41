"""Datasets whose official truth is one mask of raw ids per photo: ADE20K SceneParsing, COCO-Stuff 164k."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import IGNORE_INDEX, ClassSet
from dhr_lightning.data.datasets.prepared import IMAGE_SUFFIXES, Source, keeps_table, prepare_split, remap
from dhr_lightning.data.files import read_truth
from dhr_lightning.errors import DataError
from dhr_lightning.progress import log


def id_table(ids: Sequence[int], *, ignored: Sequence[int]) -> npt.NDArray[np.int16]:
    """Class value of each raw id `(256,)` int16: its rank in `ids`, 255 for `ignored`, -1 for what cannot occur."""
    table = np.full(256, -1, np.int16)
    table[list(ids)] = np.arange(len(ids))
    table[list(ignored)] = IGNORE_INDEX
    return table


def prepare_mask_folders(
    root: Path,
    classes: ClassSet,
    folders: Mapping[str, tuple[str, str]],
    table: npt.NDArray[np.int16],
    *,
    skip_suffix: str | None = None,
) -> None:
    """Convert the masks of both splits and take the tags from them.

    A photo without a mask is left out and a mask without a photo is counted: neither can be used.

    Args:
        root: folder of the dataset.
        classes: class list.
        folders: photos and masks below the root, by split.
        table: class value of each raw id, see `id_table`.
        skip_suffix: end of the names of masks that another tool has converted in place.

    Raises:
        DataError: if a split has no photo with a mask.
        MaskError: if a mask holds ids that the dataset does not have, or colours.
    """
    for split, (images, masks) in folders.items():
        if keeps_table(root, split, source=root / masks):
            continue
        truths = {p.stem: p for p in (root / masks).glob("*.png") if not (skip_suffix and p.stem.endswith(skip_suffix))}
        photos = {p.stem: p for p in (root / images).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
        prepare_masks(root, split, classes, photos=photos, masks=truths, table=table)


def prepare_masks(
    root: Path,
    split: str,
    classes: ClassSet,
    *,
    photos: Mapping[str, Path],
    masks: Mapping[str, Path],
    table: npt.NDArray[np.int16],
) -> None:
    """Convert the masks of one split and take the tags from them; what is done already is kept.

    A photo without a mask is left out and a mask without a photo is counted: neither can be used.

    Args:
        root: folder of the dataset.
        split: `train` or `val`.
        classes: class list.
        photos: files below the root, by image id.
        masks: files of raw ids, by image id.
        table: class value of each raw id, see `id_table`.

    Raises:
        DataError: if no photo has a mask.
        MaskError: if a mask holds ids that the dataset does not have, or colours.
    """
    sources = [
        Source(name, photo, partial(_convert, masks[name], table), changed=masks[name].stat().st_mtime)
        for name, photo in _common(root, split, photos, masks).items()
    ]
    prepare_split(root, split, sources, classes, tag_source="mask", settings={"table": table.tolist()})


def _common(root: Path, split: str, photos: Mapping[str, Path], masks: Mapping[str, Path]) -> dict[str, str]:
    """Photos that have a mask, below the root, by name in order."""
    both = sorted(photos.keys() & masks.keys())
    if not both:
        raise DataError(
            f"{split} in {root}: none of {len(photos)} photos has one of {len(masks)} masks of its name. "
            "Check the folders of photos and masks."
        )
    if len(both) < max(len(photos), len(masks)):
        log.warning(
            "WARNING: %s: %d photos and %d masks, %d of both; the others are left out, first %s.",
            split, len(photos), len(masks), len(both), min(photos.keys() ^ masks.keys()),
        )  # fmt: skip
    return {name: photos[name].relative_to(root).as_posix() for name in both}


def _convert(path: Path, table: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    return remap(read_truth(path), table, path=path)
