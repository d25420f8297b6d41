"""From a photo to features of a frozen backbone, in whichever process."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.files import image_size, read_image
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.resizing import cell_grid, resize_to_cells
from dhr_lightning.errors import ArtifactError, DataError
from dhr_lightning.models.taps import TapEncoder
from dhr_lightning.progress import human

_LOOKED_AT = 256  # images whose size is read to estimate the space
_RESERVE = 1.02  # a header and a block of the file system for each file


class FeatureReader:
    """Reads a photo at the size its backbone wants, and computes its features if it has the network.

    Args:
        network: frozen backbone.
        side: long side of the resized photo in pixels.
        computes: whether `read` computes features, or gives the normalised photo.
    """

    def __init__(self, network: TapEncoder, side: int, *, computes: bool = True) -> None:
        self.card, self.cell, self.channels, self.side = network.card, network.cell, sum(network.channels.values()), side
        self.network = network if computes else None
        self._whole = network

    def without_network(self) -> "FeatureReader":
        """A reader of photos alone, for a network that waits on a GPU."""
        return FeatureReader(self._whole, self.side, computes=False)

    def grid(self, record: Record) -> tuple[int, int]:
        """Rows and columns of cells of a photo; only its header is read."""
        return cell_grid(image_size(record.image), side=self.side, cell=self.cell, path=record.image)

    @torch.no_grad()
    def read(self, record: Record) -> dict[str, Any]:
        """`{id: [id], features: (D, h, w) float16}`, or `image: (3, H, W)` in place of features.

        Raises:
            DataError: if the photo cannot be read, or its features are not finite numbers in half precision.
        """
        image = resize_to_cells(
            read_image(record.image),
            side=self.side,
            cell=self.cell,
            interpolation=self.card.interpolation,
            path=record.image,
        )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        inside = torch.ones(1, *pixels.shape[-2:], dtype=torch.bool)
        normalised = normalize(pixels, inside, mean=self.card.mean, std=self.card.std)
        if self.network is None:
            return {"id": [record.id], "image": normalised[0]}
        features: Tensor = self.network(normalised)[0].half()
        if not bool(torch.isfinite(features).all()):
            raise DataError(f"The features of {record.image} are not finite. Look at the photo and at the weights.")
        return {"id": [record.id], "features": features}


class FeatureDataset(Dataset[dict[str, Any]]):
    """What a `FeatureReader` makes of each record."""

    def __init__(self, records: Sequence[Record], reader: FeatureReader) -> None:
        self.records, self.reader = list(records), reader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one record."""
        return self.reader.read(self.records[index])


def space_needed(records: Sequence[Record], reader: FeatureReader, folder: Path) -> str:
    """Say how much the features of some images will take: images x channels x h x w x 2 bytes.

    Args:
        records: images, at least one; of many, some are looked at.
        reader: whose cells they are.
        folder: where they will be written; need not exist.

    Raises:
        ArtifactError: if the disk has less room.
    """
    grids = np.array([reader.grid(record) for record in records[:: -(-len(records) // _LOOKED_AT)]])  # (n, 2)
    size = len(records) * reader.channels * grids.prod(1).mean() * 2
    height, width = grids.mean(0).round().astype(int)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = (
        f"{len(records)} images x {reader.channels} channels x about {height} x {width} cells x 2 bytes = {human(size)}"
        f" to write, {human(free)} free"
    )
    if size * _RESERVE > free:
        raise ArtifactError(
            f"The disk of {place} is too small: {text}. Free some space, choose another --workspace, or write less: "
            "fewer taps, or a smaller side."
        )
    return text
