"""Whole photos at the size that a network with cells wants: nothing is padded, nothing is cut off."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.errors import DataError

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_DISTORTION = 2.0  # a side may become this many times longer or shorter, compared with the other


def cell_grid(size: tuple[int, int], *, side: int, cell: int, path: Path) -> tuple[int, int]:
    """Rows and columns of cells of a photo whose long side becomes `side` pixels.

    Args:
        size: height and width of the photo in pixels.
        side: pixels; rounded to whole cells, as the other side is.
        cell: pixels per cell, at most `side`.
        path: of the photo, for messages.

    Returns:
        `(rows, columns)`, at least one each.

    Raises:
        ValueError: if `side` is shorter than a cell.
        DataError: if the photo is empty, or so narrow that whole cells would distort it more than twofold.
    """
    if not 0 < cell <= side:
        raise ValueError(f"Expected 0 < cell <= side, but got cell {cell} and side {side}.")
    height, width = size
    if min(size) < 1:
        raise DataError(f"Image {path} has {width}x{height} pixels. Remove its id from the list.")
    cells = round(side / cell)
    exact = [cells * length / max(size) for length in size]
    rows, columns = (max(1, round(length)) for length in exact)
    stretch = max(rows / exact[0], columns / exact[1])
    if stretch > _DISTORTION:
        raise DataError(
            f"Image {path} is {width}x{height} pixels: at a long side of {side} its short side is less than half a "
            f"cell of {cell} pixels, and would be stretched {stretch:.1f} times. Crop the photo, or raise the side to "
            f"{round(side * stretch / _DISTORTION) + cell}."
        )
    return rows, columns


def resize_to_cells(image: Image.Image, *, side: int, cell: int, interpolation: str, path: Path) -> Image.Image:
    """Resize a whole RGB photo so that its long side is `side` pixels and both sides are whole cells.

    Args:
        image: the photo, upright.
        side: see `cell_grid`.
        cell: see `cell_grid`.
        interpolation: a name in `FILTERS`, of the card of the weights; averages where the photo becomes smaller.
        path: of the photo, for messages.

    Returns:
        the resized photo; cell (i, j) covers its pixels from `(i * cell, j * cell)` on.

    Raises:
        DataError: see `cell_grid`.
    """
    rows, columns = cell_grid((image.height, image.width), side=side, cell=cell, path=path)
    target = (columns * cell, rows * cell)
    return image if image.size == target else image.resize(target, FILTERS[interpolation])


def resize_pixels(pixels: Tensor, *, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize images that are tensors already, as `resize_to_cells` does it to within a grey level or two.

    Args:
        pixels: `(B, 3, H, W)`, uint8 or float32; any device.
        size: rows and columns of pixels, such as those of `cell_grid` times the cell.
        interpolation: a name in `FILTERS`; `lanczos`, which torch lacks, becomes `bicubic`.

    Returns:
        `(B, 3, *size)` of the same type; uint8 is rounded and stays in [0, 255], floats may overshoot.
    """
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    if interpolation == "nearest":
        return F.interpolate(pixels, size, mode="nearest-exact")
    mode = "bicubic" if interpolation == "lanczos" else interpolation
    resized = F.interpolate(pixels.float(), size, mode=mode, align_corners=False, antialias=True)
    return resized if pixels.is_floating_point() else resized.round_().clamp_(0, 255).to(torch.uint8)
