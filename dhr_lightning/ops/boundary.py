"""Which pixels of a mask lie near the contour of their class."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import check_dims, check_positive

_OUTSIDE = -1


def boundary_band(mask: Tensor, *, distance: int) -> Tensor:
    """Mark the pixels whose square neighbourhood holds another value, or reaches beyond the image.

    For the pixels of class c this is their mask minus its erosion by a 3 x 3 square, `distance` times, with nothing
    outside the image: the part of the mask within `distance` pixels (chessboard metric) of its contour. One pass serves
    all classes, whatever their number, and its time grows with the logarithm of `distance`.

    Args:
        mask: `(B, H, W)` integer values of at most 16 bits; -1 is like outside the image.
        distance: width of the band in pixels, >= 1.

    Returns:
        `(B, H, W)` bool.

    Raises:
        ValueError: if `mask` is not 3-D or `distance` is not positive.

    Source: regions G_d and P_d of Boundary IoU (arXiv:2103.16562, Sec. 4), with the border rule of its public code.
    """
    check_dims("mask", mask, "B H W")
    check_positive("distance", distance)
    ringed = functional.pad(mask.to(torch.int16), (1, 1, 1, 1), value=_OUTSIDE)  # (B, H + 2, W + 2)
    steps = ringed[:, 1:-1, 1:] != ringed[:, 1:-1, :-1]  # (B, H, W + 1), between a pixel and the one before
    across = _any_in_window(functional.pad(steps, (distance - 1, distance - 1)), 2 * distance, dim=2)
    steps = ringed[:, 1:, 1:-1] != ringed[:, :-1, 1:-1]  # (B, H + 1, W)
    along = _any_in_window(functional.pad(steps, (0, 0, distance - 1, distance - 1)), 2 * distance, dim=1)
    # A square holds one value only if each of its rows does, and its middle column.
    rows = functional.pad(across, (0, 0, distance, distance))
    return along | _any_in_window(rows, 2 * distance + 1, dim=1)


def _any_in_window(flags: Tensor, length: int, *, dim: int) -> Tensor:
    """Whether one of `length` flags is set, from each position on; the result is shorter by `length - 1`."""
    reach = 1
    while reach < length:  # twice as far with every pass
        step = min(reach, length - reach)
        count = flags.shape[dim] - step
        flags = flags.narrow(dim, 0, count) | flags.narrow(dim, step, count)
        reach += step
    return flags
