"""Means over neighbouring cells of a grid."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.ops._checks import as_float, check_dims, check_shape


def smooth_maps(maps: Tensor, times: int = 1, *, valid: Tensor | None = None) -> Tensor:
    """Replace every cell by the mean over the valid ones of its 3x3 neighbourhood.

    Single patches of a vision transformer stand out from all others of their image; they make holes in class maps.

    Args:
        maps: `(B, C, h, w)`, finite where cells are valid.
        times: how often, >= 0; two means are nearly a Gaussian of standard deviation 1.15 cells.
        valid: `(B, h, w)` bool, cells of the image; `None` for all.

    Returns:
        `(B, C, h, w)` float; 0 where no neighbour is valid.

    Raises:
        ValueError: if a shape does not fit or `times` is negative.

    Source: outlying tokens: Darcet et al. (arXiv:2309.16588).
    """
    check_dims("maps", maps, "B C h w")
    if times < 0:
        raise ValueError(f"Expected `times` >= 0, but got {times}.")
    maps = as_float(maps)
    if valid is None:
        inside = torch.ones_like(maps[:, :1])
    else:
        check_shape("valid", valid, (len(maps), *maps.shape[2:]), "B h w")
        inside = valid[:, None].to(maps.dtype)
        maps = torch.where(valid[:, None], maps, 0.0)
    share = _mean(inside)
    for _ in range(times):
        maps = torch.where(share > 0, _mean(maps * inside) / share.clamp_min(1e-6), 0.0)
    return maps


def _mean(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, 3, stride=1, padding=1)
