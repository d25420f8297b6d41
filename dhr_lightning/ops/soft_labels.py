"""Share of each class in each cell of a grid."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import check_dims, check_positive
from dhr_lightning.ops.pooling import _edges


def class_shares(
    mask: Tensor, num_classes: int, *, grid: tuple[int, int], ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Divide each cell of a grid among the classes by their exact areas.

    Args:
        mask: `(B, H, W)`, or `(H, W)` for a batch of one, int64 class values in [0, C) and `ignore_index`.
        num_classes: C, background included.
        grid: `(h, w)` of cells of equal size over the mask, which need not end at pixels.
        ignore_index: value of pixels without a label.

    Returns:
        Shares `(B, C, h, w)` float32 of the labelled part of each cell, which sum to 1, or are 0 where nothing is
        labelled; and `(B, h, w)` float32 in [0, 1], the labelled share of each cell.

    Raises:
        ValueError: if the shape is another one, or a value is neither a class nor `ignore_index`.

    Differs: windows of `ops.pooling.cell_labels` and of adaptive pooling are made of whole pixels and overlap; here
        each pixel at a border is divided.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    check_dims("mask", mask, "B H W")
    for name, side in (("num_classes", num_classes), ("grid[0]", grid[0]), ("grid[1]", grid[1])):
        check_positive(name, side)
    ignored = mask == ignore_index
    wrong = ~ignored & ((mask < 0) | (mask >= num_classes))
    if bool(wrong.any()):
        raise ValueError(
            f"Expected `mask` values in [0, {num_classes}) or {ignore_index}, but got {int(mask[wrong][0])}."
        )
    area = _cell_areas(mask.masked_fill(ignored, num_classes), num_classes + 1, grid)[:, :-1]  # (B, C, h, w)
    labelled = area.sum(1)  # (B, h, w)
    shares = torch.where(labelled[:, None] > 0, area / labelled[:, None].clamp_min(1e-9), 0.0)
    whole = mask.shape[1] * mask.shape[2] / (grid[0] * grid[1])
    return shares.float(), (labelled / whole).clamp_max(1.0).float()


def _cell_areas(index: Tensor, values: int, grid: tuple[int, int]) -> Tensor:
    """Area `(B, V, h, w)` in pixels, float64, of each value of `index` `(B, H, W)` in each cell.

    The number of pixels above and left of a point is counted at whole pixels and linear between two of them, so the
    area up to a border between pixels follows from the counts on both its sides.
    """
    (row, *rows), (column, *columns) = (
        _borders(length, cells, index.device) for length, cells in zip(index.shape[1:], grid, strict=True)
    )
    pieces = int(row[-1]) + 1, int(column[-1]) + 1
    image = torch.arange(len(index), device=index.device)[:, None, None]
    place = (image * values + index) * (pieces[0] * pieces[1]) + (row[:, None] * pieces[1] + column)  # (B, H, W)
    count = torch.bincount(place.flatten(), minlength=len(index) * values * pieces[0] * pieces[1])
    total = functional.pad(count.view(-1, values, *pieces).cumsum(2).cumsum(3), (1, 0, 1, 0)).double()
    below, above, part = rows
    total = total[:, :, below] + part[:, None] * (total[:, :, above] - total[:, :, below])  # (B, V, h + 1, columns + 1)
    below, above, part = columns
    total = total[..., below] + part * (total[..., above] - total[..., below])  # (B, V, h + 1, w + 1)
    area = total.diff(dim=2).diff(dim=3)
    return torch.where(area > 1e-9 * index[0].numel(), area, 0.0)  # rounding is no area


def _borders(length: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Piece of each pixel; edge at or below each of the cells + 1 borders, edge at or above, and the part between."""
    piece, first, last, _ = _edges(length, cells, device)
    border = torch.arange(cells + 1, device=device)
    part = (border * length % cells).double() / cells
    return piece, torch.cat([first, last[-1:]]), torch.cat([first[:1], last]), part
