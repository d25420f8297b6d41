"""The batch that every task sees, and the geometry that travels with it."""

import statistics
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F


class Geometry(NamedTuple):
    """Where a crop comes from, in pixels; whole images have the identity.

    Args:
        source: `(x0, y0, x1, y1)` box in the original image that was taken, before mirroring.
        destination: `(x0, y0, x1, y1)` box of the canvas that it fills; the rest is padding.
        scale: canvas pixels per original pixel, `(x, y)`.
        flip: whether the box was mirrored left to right.
        size: `(height, width)` of the original image.
    """

    source: tuple[float, float, float, float]
    destination: tuple[int, int, int, int]
    scale: tuple[float, float]
    flip: bool
    size: tuple[int, int]


class Sample(TypedDict, total=False):
    """One image as the dataset yields it; keys after `geometry` are present when a task asks for them."""

    id: str
    pixels: Tensor  # (3, H, W) uint8
    valid: Tensor  # (H, W) bool, False in padding
    tags: Tensor  # (T,) float32 multi-hot over foreground
    geometry: Geometry
    mask: Tensor  # (H, W) int64 class values to train on, 255 ignore
    truth: Tensor  # (H, W) int64 ground truth, for evaluation only
    uss: Tensor  # (D, h, w) float32 features of the whole, unmirrored image
    neighbour: Tensor  # (3, H, W) uint8 crop of another, similar image


class Batch(TypedDict, total=False):
    """A collated batch; images are padded at the right and bottom to one canvas, which whole images share."""

    id: list[str]
    pixels: Tensor  # (B, 3, H, W) uint8
    image: Tensor  # (B, 3, H, W) float32, normalised, 0 in padding; made on the device
    valid: Tensor  # (B, H, W) bool
    tags: Tensor  # (B, T) float32
    geometry: list[Geometry]
    mask: Tensor  # (B, H, W) int64
    truth: Tensor  # (B, H, W) int64; 255 throughout for an image without ground truth
    uss: Tensor  # (B, D, h, w) float32 on a grid over the canvas, 0 in padding
    neighbour: Tensor  # (B, 3, H, W) uint8
    neighbour_image: Tensor  # (B, 3, H, W) float32, normalised


def canvas_size(size: tuple[int, int], *, divisor: int) -> tuple[int, int]:
    """Round `(height, width)` in pixels up to multiples of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def feature_grid(cells: tuple[int, int], size: tuple[float, float], canvas: tuple[int, int]) -> tuple[int, int]:
    """Cells that features need on a canvas to keep their density.

    Args:
        cells: `(rows, columns)` of the features, evenly over the image.
        size: `(height, width)` of the image on the canvas in pixels.
        canvas: `(height, width)` of the canvas in pixels.
    """
    rows, columns = (
        max(1, round(length * count / own)) for length, count, own in zip(canvas, cells, size, strict=True)
    )
    return rows, columns


def sample_features(features: Tensor, geometry: Geometry, *, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bring features of the whole image onto the grid of an augmented crop.

    Args:
        features: `(D, h, w)` float, cells evenly over the original image.
        geometry: how the crop was cut.
        canvas: height and width of the crop in pixels.
        grid: height and width of the result in cells, evenly over the canvas.

    Returns:
        `(D, *grid)`; zero where the cell lies outside the image.

    Source: DHR matches features and masks cell by cell (arXiv:2404.00380, Eq. 3).
    Differs: the published code leaves the features unaligned with the crop; here flip, scale and box are undone.
    """
    rows = (torch.arange(grid[0]) + 0.5) * canvas[0] / grid[0]  # canvas pixels
    columns = (torch.arange(grid[1]) + 0.5) * canvas[1] / grid[1]
    left, top, right, bottom = geometry.destination
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]  # (h, w)
    x = (columns - left) / geometry.scale[0]
    x = (right - left) / geometry.scale[0] - x if geometry.flip else x
    y = geometry.source[1] + (rows - top) / geometry.scale[1]
    x = geometry.source[0] + x
    where = torch.stack(torch.meshgrid(x / geometry.size[1], y / geometry.size[0], indexing="xy"), dim=-1)
    sampled = F.grid_sample(features[None], where[None] * 2 - 1, padding_mode="border", align_corners=False)[0]
    return sampled * inside


def _pad(tensor: Tensor, height: int, width: int, value: float) -> Tensor:
    return F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]), value=value)


def collate(samples: list[Sample], *, divisor: int = 1) -> Batch:
    """Stack samples, padding to the largest height and width, rounded up to `divisor` pixels."""
    largest = (max(s["pixels"].shape[-2] for s in samples), max(s["pixels"].shape[-1] for s in samples))
    height, width = canvas_size(largest, divisor=divisor)
    batch = Batch(
        id=[sample["id"] for sample in samples],
        pixels=torch.stack([_pad(sample["pixels"], height, width, 0) for sample in samples]),
        valid=torch.stack([_pad(sample["valid"], height, width, 0) for sample in samples]),
        tags=torch.stack([sample["tags"] for sample in samples]),
        geometry=[sample["geometry"] for sample in samples],
    )
    if "mask" in samples[0]:
        batch["mask"] = torch.stack([_pad(sample["mask"], height, width, 255) for sample in samples])
    if any("truth" in sample for sample in samples):
        unknown = torch.full((height, width), 255, dtype=torch.int64)
        batch["truth"] = torch.stack(
            [_pad(sample["truth"], height, width, 255) if "truth" in sample else unknown for sample in samples]
        )
    if "neighbour" in samples[0]:
        batch["neighbour"] = torch.stack([sample["neighbour"] for sample in samples])
    if "uss" in samples[0]:
        batch["uss"] = torch.stack(_features_on_canvas(samples, (height, width)))
    return batch


def _features_on_canvas(samples: list[Sample], canvas: tuple[int, int]) -> list[Tensor]:
    """Sample each image's features on one grid: that of most, which is the own one of every whole image."""
    grids = [
        feature_grid(
            (s["uss"].shape[-2], s["uss"].shape[-1]),
            (s["geometry"].size[0] * s["geometry"].scale[1], s["geometry"].size[1] * s["geometry"].scale[0]),
            canvas,
        )
        for s in samples
    ]
    (grid,) = statistics.multimode(sorted(grids))[:1]
    return [sample_features(s["uss"], s["geometry"], canvas=canvas, grid=grid) for s in samples]
