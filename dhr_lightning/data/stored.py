"""Training samples cut from stored features: no photo is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.data.dataset import Source, sample_generator
from dhr_lightning.data.files import check_mask, image_size, read_gt_mask
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.ops.soft_labels import class_shares


@dataclass(frozen=True)
class GridCrop:
    """Crops of stored features, at whole cells.

    Args:
        cells: side of a crop in cells; None for the whole grid of an image.
        flip: probability of a left-right mirror. The features are mirrored, not the photo before its features.
        label_scale: cells of the labels for each cell of the features, per side, >= 1.

    Raises:
        ConfigError: if a value is out of range.
    """

    cells: int | None = None
    flip: float = 0.0
    label_scale: int = 1

    def __post_init__(self) -> None:
        if (self.cells is not None and self.cells < 1) or not 0 <= self.flip <= 1 or self.label_scale < 1:
            raise ConfigError(
                f"Expected cells >= 1, flip in [0, 1] and label_scale >= 1, but got {self.cells}, {self.flip} and "
                f"{self.label_scale}."
            )

    def draw(self, grid: tuple[int, int], generator: torch.Generator) -> tuple[slice, slice, bool]:
        """Rows, columns and whether to mirror, of one sample."""
        draws = torch.rand(3, generator=generator).tolist()
        spans = []
        for length, draw in zip(grid, draws[:2], strict=True):
            side = length if self.cells is None else min(self.cells, length)
            start = min(int(draw * (length - side + 1)), length - side)
            spans.append(slice(start, start + side))
        return spans[0], spans[1], draws[2] < self.flip


class StoredSample(TypedDict, total=False):
    """One image as `StoredDataset` yields it."""

    id: str
    tags: Tensor  # (T,) float32
    features: dict[str, Tensor]  # by port: (D, h, w) float16
    shares: dict[str, Tensor]  # by port: (C, s h, s w) float32


def collate_stored(samples: list[StoredSample]) -> dict[str, object]:
    """Stack samples, padded to the largest grid: a `Batch` without pixels.

    `inputs` holds features `(B, D, h, w)` float16 and shares `(B, C, s h, s w)` float32 by port, zero in padding;
    `valid` `(B, h, w)` bool is False there.
    """
    first = samples[0]
    inputs = {port: _stack_last([sample["features"][port] for sample in samples]) for port in first["features"]}
    inputs |= {port: _stack([sample["shares"][port] for sample in samples]) for port in first["shares"]}
    port = next(iter(first["features"]))
    inside = [torch.ones(sample["features"][port].shape[-2:], dtype=torch.bool) for sample in samples]
    return {
        "id": [sample["id"] for sample in samples],
        "tags": torch.stack([sample["tags"] for sample in samples]),
        "inputs": inputs,
        "valid": _stack(inside),
    }


class StoredDataset(Dataset[StoredSample]):
    """Stored features of the training images with tags and, on request, labels of their cells.

    Args:
        records: training images.
        classes: class list.
        inputs: where to find each input, by port: features, masks.
        crop: how samples are cut.
        truth: port at which the ground truth stands in for masks, or None.
        seed: with epoch and index, the only source of randomness.
    """

    collate = staticmethod(collate_stored)

    def __init__(
        self,
        records: Sequence[Record],
        classes: ClassSet,
        inputs: Mapping[str, Source],
        crop: GridCrop,
        *,
        truth: str | None = None,
        seed: int = 0,
    ) -> None:
        self.classes, self.crop, self.truth, self.seed = classes, crop, truth, seed
        self.inputs = dict(inputs)
        self.records = [record for record in records if truth is None or record.gt_mask is not None]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> StoredSample:
        """Sample `index`, or `(epoch, index)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        features = {
            port: torch.from_numpy(source.features(record))
            for port, source in self.inputs.items()
            if source.kind.role == "features"
        }
        grid = _common_grid(record.id, features)
        rows, columns, mirrored = self.crop.draw(grid, sample_generator(self.seed, epoch, index))

        def cut(maps: Tensor, scale: int) -> Tensor:
            part = maps[:, rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
            return part.flip(-1) if mirrored else part

        scale = self.crop.label_scale
        return StoredSample(
            id=record.id,
            tags=torch.from_numpy(tags_to_multi_hot(record.tags, self.classes)),
            features={port: cut(maps, 1) for port, maps in features.items()},
            shares={port: cut(self._shares(record, port, grid), scale) for port in self._mask_ports()},
        )

    def _mask_ports(self) -> list[str]:
        named = [port for port, source in self.inputs.items() if source.kind.is_mask]
        return [*named, *([self.truth] if self.truth else [])]

    def _shares(self, record: Record, port: str, grid: tuple[int, int]) -> Tensor:
        """Share of each class in each cell of the labels, over its whole area: unlabelled pixels count for none."""
        source = self.inputs.get(port)
        path = source.path(record.id) if source else cast(Path, record.gt_mask)  # images without are left out
        mask = read_mask(path) if source else cast(np.ndarray, read_gt_mask(record))
        height, width = image_size(record.image)
        check_mask(mask, path=path, size=(width, height), classes=self.classes)
        scale = self.crop.label_scale
        shares, weight = class_shares(
            torch.from_numpy(mask.astype(np.int64))[None],
            num_classes=self.classes.num_classes,
            grid=(grid[0] * scale, grid[1] * scale),
            ignore_index=self.classes.ignore_index,
        )
        return (shares * weight[:, None])[0]


def _common_grid(image_id: str, features: Mapping[str, Tensor]) -> tuple[int, int]:
    grids = {(maps.shape[-2], maps.shape[-1]) for maps in features.values()}
    if len(grids) != 1:
        raise ArtifactError(f"The features of {image_id} lie on different grids: {sorted(grids)}. Make them alike.")
    (grid,) = grids
    return grid


def _stack_last(maps: list[Tensor]) -> Tensor:
    """As `_stack`, with the channels last in memory: convolutions read them so, and every value is copied once."""
    height, width = _largest(maps)
    stacked = torch.zeros(len(maps), height, width, len(maps[0]), dtype=maps[0].dtype)
    for place, one in enumerate(maps):
        stacked[place, : one.shape[1], : one.shape[2]] = one.permute(1, 2, 0)
    return stacked.permute(0, 3, 1, 2)


def _largest(maps: list[Tensor]) -> tuple[int, int]:
    return max(one.shape[-2] for one in maps), max(one.shape[-1] for one in maps)


def _stack(maps: list[Tensor]) -> Tensor:
    height, width = _largest(maps)
    return torch.stack([F.pad(one, (0, width - one.shape[-1], 0, height - one.shape[-2])) for one in maps])
