"""Whole images without their padding, and the space that their features take."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.files import image_size
from dhr_lightning.data.sample import Batch
from dhr_lightning.models.uss import USSNetwork
from dhr_lightning.ops.resize import multiple_size
from dhr_lightning.progress import human

_LOOKED_AT = 256  # images whose size is read to estimate the space


def images_of(batch: Batch, source: str) -> Tensor:
    """What a backbone reads of a batch: `pixels`, `image`, or the same of the neighbours."""
    images: Tensor = batch[source]  # type: ignore[literal-required]
    return images


def equal_sizes(batch: Batch, source: str) -> Iterator[tuple[list[int], Tensor]]:
    """Images of a batch in groups of one size, cut to it: no padding is left.

    Args:
        batch: whole images.
        source: `pixels` or `image`.

    Yields:
        places in the batch, and these images `(n, 3, H, W)`.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, geometry in enumerate(batch["geometry"]):
        groups.setdefault(geometry.size, []).append(place)
    images = images_of(batch, source)
    for (height, width), places in groups.items():
        yield places, images[places, :, :height, :width]


def space_on_disk(records: Sequence[Record], network: USSNetwork, dimension: int, scale: float, folder: Path) -> str:
    """Say how much the features of some images will take: images x D x h x w x 2 bytes.

    Args:
        records: images, at least one; of many, some are looked at.
        network: whose cells they are.
        dimension: channels D.
        scale: relative image size that fixes the grid.
        folder: where they will be written; need not exist.
    """
    step = -(-len(records) // _LOOKED_AT)
    grids = [multiple_size(image_size(record.image), network.cell, scale=scale) for record in records[::step]]
    cells = np.array(grids) // network.cell  # (n, 2)
    size = len(records) * dimension * cells.prod(1).mean() * 2
    height, width = cells.mean(0).round().astype(int)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return (
        f"{len(records)} images x {dimension} channels x about {height} x {width} cells x 2 bytes = {human(size)} "
        f"to write, {human(shutil.disk_usage(place).free)} free"
    )
