"""Photos with a landmark, and networks that show their input, for features of frozen backbones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.frozen_features import FeatureReader, FrozenSettings
from dhr_lightning.models.cards import WeightsCard

PLAIN = WeightsCard((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
VIT = "vit_tiny_patch16_224"


class Cells(nn.Module):
    """The mean colour of each cell.

    Args:
        cell: pixels between two cells.
        card: of the weights.
        slope: the left is weighed this much more than the right, so that the network tells them apart.
        factor: of all features.
    """

    def __init__(self, cell: int = 8, card: WeightsCard = PLAIN, *, slope: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.cell, self.card, self.slope, self.factor = cell, card, slope, factor
        self.channels = {"colour": 3}

    def forward(self, image: Tensor) -> Tensor:
        weight = 1 + self.slope * torch.linspace(1, 0, image.shape[-1])
        return F.avg_pool2d(image * weight, self.cell) * self.factor


def reader_of(network: nn.Module, **settings: Any) -> FeatureReader:
    """A reader of raw features 64 pixels wide, in one scale and without mirror unless said otherwise."""
    computes = settings.pop("computes", True)
    return FeatureReader(
        network, FrozenSettings("cells", **{"side": 64, "normalize": False, **settings}), computes=computes
    )


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A photo `(height, width)` of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(folder: Path, photo: Image.Image, name: str = "photo", **options: Any) -> Record:
    """A photo on disk, without loss."""
    path = folder / f"{name}.png"
    photo.save(path, **options)
    return Record(name, path, (1,))


def marked(size: tuple[int, int], grid: tuple[int, int], cell: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """A black photo `(height, width)` whose cell `(row, column)` of a grid is white, and its mask: 1 there."""
    mask = np.zeros(size, np.uint8)
    edges = [np.linspace(0, length, count + 1).round().astype(int) for length, count in zip(size, grid, strict=True)]
    (top, bottom), (left, right) = (edge[place : place + 2] for edge, place in zip(edges, cell, strict=True))
    mask[top:bottom, left:right] = 1
    return Image.fromarray(np.repeat(mask[..., None] * 255, 3, -1)), mask
