"""The batch that every task sees, and the geometry that travels with it."""

import statistics
from typing import Any, NamedTuple, TypedDict

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


class GridMaps(NamedTuple):
    """Maps of the whole, unmirrored image on a grid of its own.

    Args:
        maps: `(D, h, w)` float32, cells evenly over the image.
        geometry: `bilinear` if batches hold them at every pixel of the canvas, `sampled` for cells of their own
            density.
    """

    maps: Tensor
    geometry: str


class Sample(TypedDict, total=False):
    """One image as the dataset yields it; keys after `geometry` are present when a task asks for them."""

    id: str
    pixels: Tensor  # (3, H, W) uint8
    valid: Tensor  # (H, W) bool, False in padding
    tags: Tensor  # (T,) float32 multi-hot over foreground
    geometry: Geometry
    gt_mask: Tensor  # (H, W) int64 ground truth, for evaluation and full supervision only
    inputs: dict[str, "Tensor | GridMaps"]  # by port: (H, W) int64 class values, 255 ignore; or maps on a grid
    neighbour: Tensor  # (3, H, W) uint8 crop of another, similar image


class Batch(TypedDict, total=False):
    """A collated batch; images are padded at the right and bottom to one canvas, which whole images share."""

    id: list[str]
    pixels: Tensor  # (B, 3, H, W) uint8
    image: Tensor  # (B, 3, H, W) float32, normalised, 0 in padding; made on the device
    valid: Tensor  # (B, H, W) bool
    tags: Tensor  # (B, T) float32
    geometry: list[Geometry]
    gt_mask: Tensor  # (B, H, W) int64; 255 throughout for an image without ground truth
    inputs: dict[
        str, Tensor
    ]  # by port: masks (B, H, W) int64, 255 in padding; CAMs (B, K, H, W) float32 of the tags in
    # ascending order, or features (B, D, h, w) float32 on a grid over the canvas, both 0 in padding
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


def sample_features(
    features: Tensor, geometry: Geometry, *, canvas: tuple[int, int], grid: tuple[int, int], mode: str = "bilinear"
) -> Tensor:
    """Bring features of the whole image onto the grid of an augmented crop.

    Args:
        features: `(D, h, w)` float, cells evenly over the original image.
        geometry: how the crop was cut.
        canvas: height and width of the crop in pixels.
        grid: height and width of the result in cells, evenly over the canvas.
        mode: `bilinear`, or `nearest` for class values.

    Returns:
        `(D, *grid)`; zero where the cell lies outside the image.

    Source: DHR matches features and masks cell by cell (arXiv:2404.00380, Eq. 3).
    Differs: the published code leaves the features unaligned with the crop; here flip, scale and box are undone.
    """
    if (geometry.size, tuple(features.shape[-2:])) == (canvas, grid) and not geometry.flip and geometry.scale == (1, 1):
        return features  # the whole image on its own grid
    rows = (torch.arange(grid[0]) + 0.5) * canvas[0] / grid[0]  # canvas pixels
    columns = (torch.arange(grid[1]) + 0.5) * canvas[1] / grid[1]
    left, top, right, bottom = geometry.destination
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]  # (h, w)
    x = (columns - left) / geometry.scale[0]
    x = (right - left) / geometry.scale[0] - x if geometry.flip else x
    y = geometry.source[1] + (rows - top) / geometry.scale[1]
    x = geometry.source[0] + x
    where = torch.stack(torch.meshgrid(x / geometry.size[1], y / geometry.size[0], indexing="xy"), dim=-1)
    sampled = F.grid_sample(features[None], where[None] * 2 - 1, mode, padding_mode="border", align_corners=False)[0]
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
    if any("gt_mask" in sample for sample in samples):
        unknown = torch.full((height, width), 255, dtype=torch.int64)
        batch["gt_mask"] = torch.stack(
            [_pad(sample["gt_mask"], height, width, 255) if "gt_mask" in sample else unknown for sample in samples]
        )
    if "neighbour" in samples[0]:
        batch["neighbour"] = torch.stack([sample["neighbour"] for sample in samples])
    if "inputs" in samples[0]:
        places = [sample["geometry"] for sample in samples]
        batch["inputs"] = {
            port: _collate_input([sample["inputs"][port] for sample in samples], places, (height, width))
            for port in samples[0]["inputs"]
        }
    return batch


def _collate_input(values: list[Any], places: list[Geometry], canvas: tuple[int, int]) -> Tensor:
    if not isinstance(values[0], GridMaps):
        return torch.stack([_pad(value, *canvas, 255) for value in values])
    grid = canvas if values[0].geometry == "bilinear" else _common_grid(values, places, canvas)
    maps = [
        sample_features(value.maps, place, canvas=canvas, grid=grid)
        for value, place in zip(values, places, strict=True)
    ]
    largest = max(len(one) for one in maps)  # CAMs: images have different numbers of tags
    return torch.stack([F.pad(one, (0, 0, 0, 0, 0, largest - len(one))) for one in maps])


def _common_grid(values: list[Any], places: list[Geometry], canvas: tuple[int, int]) -> tuple[int, int]:
    """Grid of most of some features, which is the own one of every whole image."""
    grids = [
        feature_grid(
            (value.maps.shape[-2], value.maps.shape[-1]),
            (place.size[0] * place.scale[1], place.size[1] * place.scale[0]),
            canvas,
        )
        for value, place in zip(values, places, strict=True)
    ]
    (grid,) = statistics.multimode(sorted(grids))[:1]
    return grid
