"""Cross entropy of pixels on masks."""

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, mask: Tensor, *, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    """Mean cross entropy over labelled pixels; zero, with a gradient of zero, when no pixel is labelled.

    Args:
        logits: `(B, C, H, W)`.
        mask: `(B, H, W)` int64 class values.
        ignore_index: pixels without a label.
        weight: `(B, H, W)` of each pixel, which does not change what the sum is divided by; default 1.
    """
    if weight is None:
        total = F.cross_entropy(logits.float(), mask, ignore_index=ignore_index, reduction="sum")
    else:
        total = (F.cross_entropy(logits.float(), mask, ignore_index=ignore_index, reduction="none") * weight).sum()
    return total / (mask != ignore_index).sum().clamp(min=1)


def cell_loss(logits: Tensor, mask: Tensor, *, stride: int, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    """`segmentation_loss` of logits on cells, against the pixel in the middle of each cell.

    Args:
        logits: `(B, C, h, w)`.
        mask: `(B, H, W)` int64 class values of pixels.
        stride: pixels between two cells.
        ignore_index: pixels without a label.
        weight: `(B, H, W)` of each pixel; default 1.

    Source: loss at the size of the decoder as in the published code of DHR (arXiv:2404.00380).
    Differs: there the top left pixel counts, which belongs to logits that are stretched with aligned corners. Ours are
        stretched cell by cell, so that it would move every prediction by 1.5 pixels to the right and down.
    """
    height, width = mask.shape[-2:]
    rows, columns = (torch.arange(cells, device=mask.device) for cells in logits.shape[-2:])
    rows, columns = (cells * stride + stride // 2 for cells in (rows, columns))
    rows, columns = rows.clamp(max=height - 1), columns.clamp(max=width - 1)
    middle = mask[:, rows][:, :, columns]  # (B, h, w)
    weight = None if weight is None else weight[:, rows][:, :, columns]
    return segmentation_loss(logits, middle, ignore_index=ignore_index, weight=weight)
