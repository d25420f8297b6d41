"""The space that stored features take, said before they are written."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dhr_lightning.data.catalog import Record
from dhr_lightning.errors import ArtifactError
from dhr_lightning.progress import human

Grid = tuple[int, int]
_LOOKED_AT = 256  # images whose size is read to estimate the space
_RESERVE = 1.02  # a header and a block of the file system for each file


def space_needed(
    records: Sequence[Record], grid_of: Callable[[Record], Grid], channels: int, folder: Path, *, advice: str
) -> str:
    """Say how much the features of some images will take: images x channels x h x w x 2 bytes.

    Args:
        records: images, at least one; of many, some are looked at.
        grid_of: rows and columns of the features of an image.
        channels: of all features.
        folder: where they will be written; need not exist.
        advice: how to write less, for the error.

    Raises:
        ArtifactError: if the disk has less room.
    """
    grids = np.array([grid_of(record) for record in records[:: -(-len(records) // _LOOKED_AT)]])  # (n, 2)
    size = len(records) * channels * grids.prod(1).mean() * 2
    height, width = grids.mean(0).round().astype(int)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = (
        f"{len(records)} images x {channels} channels x about {height} x {width} cells x 2 bytes = {human(size)}"
        f" to write, {human(free)} free"
    )
    if size * _RESERVE > free:
        raise ArtifactError(
            f"The disk of {place} is too small: {text}. Free some space, choose another --workspace, or {advice}."
        )
    return text
