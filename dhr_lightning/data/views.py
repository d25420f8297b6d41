"""Several views of one image, large and small, and where each of them lies in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.dataset import sample_generator
from dhr_lightning.data.files import read_image
from dhr_lightning.data.transforms import jittered
from dhr_lightning.errors import ConfigError

_TRIES = 50  # draws of a view that has to meet the large ones


@dataclass(frozen=True)
class MultiCrop:
    """Random views of an image: large ones, and small ones that each overlap every large one. No mirrors.

    Args:
        sizes: sides of large and small views in pixels.
        counts: how many of each, at least one large one and two views in all.
        scales: ranges of their areas relative to the image.
        overlap: part of a large view's area that every other view covers at least.
        jitter: strengths of brightness, contrast, saturation and hue.

    Raises:
        ConfigError: if a value is out of range.

    Source: Leopart (arXiv:2204.13101), published code: sides of 3:4 to 4:3, as in SwAV (arXiv:2006.09882).
    Differs: neither grey nor blurred views. Of 50 draws that do not overlap enough the one that overlaps most is taken.
    """

    sizes: tuple[int, int] = (224, 96)
    counts: tuple[int, int] = (2, 4)
    scales: tuple[tuple[float, float], tuple[float, float]] = ((0.25, 1.0), (0.05, 0.25))
    overlap: float = 0.01
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)

    def __post_init__(self) -> None:
        if self.counts[0] < 1 or self.counts[1] < 0 or sum(self.counts) < 2 or min(self.sizes) < 1:
            raise ConfigError(
                f"Expected views of counts [>= 1, >= 0], two in all, and sizes >= 1, but got counts "
                f"{list(self.counts)} and sizes {list(self.sizes)}."
            )
        if not all(0 < low <= high <= 1 for low, high in self.scales) or not 0 <= self.overlap < 1:
            raise ConfigError(
                f"Expected views of 0 < scales[0] <= scales[1] <= 1 and 0 <= overlap < 1, but got "
                f"{[list(one) for one in self.scales]} and {self.overlap}."
            )

    def __call__(self, image: Image.Image, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Cut all views of an image, large ones first.

        Returns:
            pixels `(3, S, S)` uint8 of each, and their boxes `(V, 4)`: left, top, right, bottom in parts of the image.
        """
        boxes: list[tuple[float, float, float, float]] = []
        views: list[Tensor] = []
        for size, count, scale in zip(self.sizes, self.counts, self.scales, strict=True):
            for _ in range(count):
                boxes.append(self._box(image.size, scale, boxes[: self.counts[0]], generator))
                views.append(self._cut(image, boxes[-1], size, generator))
        return views, torch.tensor(boxes)

    def _box(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        others: Sequence[tuple[float, float, float, float]],
        generator: torch.Generator,
    ) -> tuple[float, float, float, float]:
        best, most = (0.0, 0.0, 1.0, 1.0), -1.0
        for _ in range(_TRIES):
            box = _random_box(size, scale, generator)
            covered = min((_covered(other, box) for other in others), default=1.0)
            if covered > most:
                best, most = box, covered
            if most >= self.overlap:
                break
        return best

    def _cut(
        self, image: Image.Image, box: tuple[float, float, float, float], size: int, generator: torch.Generator
    ) -> Tensor:
        width, height = image.size
        part = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        patch = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=part))
        draw = torch.rand(4, generator=generator).tolist()
        return jittered(torch.from_numpy(patch).permute(2, 0, 1), self.jitter, draw)


def _random_box(
    size: tuple[int, int], scale: tuple[float, float], generator: torch.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in parts of an image of `(width, height)`; cut off at its sides where it is too long."""
    draws = torch.rand(4, generator=generator).tolist()
    area = scale[0] + draws[0] * (scale[1] - scale[0])
    ratio = math.exp((2 * draws[1] - 1) * math.log(4 / 3)) * size[1] / size[0]  # of the box in parts of the image
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = draws[2] * (1 - width), draws[3] * (1 - height)
    return left, top, left + width, top + height


def _covered(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Part of a box that another one covers."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(0.0, width) * max(0.0, height) / ((box[2] - box[0]) * (box[3] - box[1]))


class ViewSample(TypedDict):
    """Views of one image."""

    id: str
    views: list[Tensor]  # (3, S, S) uint8
    boxes: Tensor  # (V, 4)


class ViewDataset(Dataset[ViewSample]):
    """Random views of the training images.

    Args:
        records: training images.
        crop: how views are cut.
        seed: with epoch and index, the only source of randomness.
    """

    def __init__(self, records: Sequence[Record], crop: MultiCrop, *, seed: int = 0) -> None:
        self.records, self.crop, self.seed = list(records), crop, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> ViewSample:
        """Views of image `index`, or of `(epoch, index)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        views, boxes = self.crop(read_image(record.image), sample_generator(self.seed, epoch, index))
        return ViewSample(id=record.id, views=views, boxes=boxes)

    @staticmethod
    def collate(samples: list[ViewSample]) -> dict[str, object]:
        """`views`: a `(B, 3, S, S)` uint8 for each view; `boxes` `(B, V, 4)`."""
        views = [torch.stack(one) for one in zip(*(sample["views"] for sample in samples), strict=True)]
        boxes = torch.stack([sample["boxes"] for sample in samples])
        return {"id": [sample["id"] for sample in samples], "views": views, "boxes": boxes}
