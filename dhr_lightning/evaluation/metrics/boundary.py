"""Pixels near the contours, counted for Boundary IoU."""

import torch
from torch import Tensor

from dhr_lightning.evaluation.metrics.counts import check_pair, joint_counts
from dhr_lightning.ops.boundary import boundary_band

BOUNDARY_RATIO = 0.02


def boundary_counts(
    prediction: Tensor,
    target: Tensor,
    *,
    num_classes: int,
    ignore_index: int = 255,
    ratio: float = BOUNDARY_RATIO,
) -> Tensor:
    """Count the pixels near the contours of every class.

    The band of a mask holds, for each class, the pixels of the class that lie within `ratio` of the image diagonal
    (at least one pixel) of its contour; the edge of the image is part of the contour.

    Args:
        prediction: `(B, H, W)` integer class values of whole images; `ignore_index` means "no answer".
        target: same shape; pixels of value `ignore_index` are taken out of both masks, so their edge is a contour in
            both and a right prediction scores 1.
        num_classes: C, number of class values, background included.
        ignore_index: outside 0..C-1.
        ratio: width of the band as a share of the image diagonal, > 0.

    Returns:
        `(3, C)` int64: pixels in both bands with the class in both masks; in the true band; in the predicted band.
        The Boundary IoU of a class is `both / (true + predicted - both)` of sums over a split.

    Raises:
        ValueError: if the shapes differ, a type is not integer, `ratio` is not positive, or a value is unknown.

    Source: Boundary IoU (arXiv:2103.16562, Sec. 4; 2 % of the diagonal).
    Differs: one ratio of sums per class over the split, as for mIoU, where the paper scores single objects; ignored
    pixels, which the paper does not have.
    """
    check_pair(prediction, target)
    if not ratio > 0:
        raise ValueError(f"Expected `ratio` > 0, but got {ratio}.")
    height, width = target.shape[-2:]
    distance = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    answer = prediction.long().masked_fill(target == ignore_index, ignore_index)
    bands = [
        mask.where(boundary_band(mask, distance=distance), ignore_index)  # (B, H, W), only the band is left
        for mask in (answer, target.long())
    ]
    joint = joint_counts(*bands, num_classes=num_classes, ignore_index=ignore_index).sum(0)  # (C + 1, C + 1)
    return torch.stack([joint.diagonal(), joint.sum(1), joint.sum(0)])[:, :num_classes]
