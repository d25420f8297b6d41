"""Whole images without their padding, and the space that their features take."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.feature_space import Grid, space_needed
from dhr_lightning.data.files import image_size
from dhr_lightning.data.sample import Batch
from dhr_lightning.models.uss import USSNetwork
from dhr_lightning.ops.resize import multiple_size


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
    """Say how much the features of some images will take, see `data.feature_space.space_needed`.

    Args:
        records: images, at least one.
        network: whose cells they are.
        dimension: channels D.
        scale: relative image size that fixes the grid.
        folder: where they will be written; need not exist.

    Raises:
        ArtifactError: if the disk has less room.
    """

    def grid_of(record: Record) -> Grid:
        height, width = multiple_size(image_size(record.image), network.cell, scale=scale)
        return height // network.cell, width // network.cell

    return space_needed(records, grid_of, dimension, folder, advice="write less: a smaller dimension or scale")
