"""Losses of SEAM: the maps of an image and of its smaller copy agree."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-5


class View(NamedTuple):
    """Maps of one size of the image, all at one resolution.

    Args:
        raw: `(B, T, h, w)`, any range.
        refined: `(B, 1 + T, h, w)`, background first.
    """

    raw: Tensor
    refined: Tensor

    def resized(self, size: tuple[int, int]) -> "View":
        """Both at another resolution."""
        return View(*(F.interpolate(one, size, mode="bilinear", align_corners=True) for one in self))


def seam_losses(
    large: View, small: View, tags: Tensor, *, valid: Tensor | None = None, hard: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Equivariance of the maps (ER), and of maps with the refined maps of the other size (ECR).

    Args:
        large: maps of the image.
        small: maps of its smaller copy, at the same resolution.
        tags: `(B, T)` multi-hot.
        valid: `(B, h, w)` bool, pixels that count.
        hard: share of the values of an image, the largest differences, that ECR averages, in (0, 1].

    Returns:
        both losses, scalars.

    Source: SEAM (arXiv:2004.04581), Eq. 5 and 10, and its code.
    Differs: the code changes its arguments in place; these are pure functions.
    """
    with_background = F.pad(tags, (1, 0), value=1.0)[:, :, None, None]
    keep = 1.0 if valid is None else valid[:, None].float()
    normal = [min_max(view.raw) * tags[:, :, None, None] for view in (large, small)]
    refined = [min_max(view.refined) * with_background for view in (large, small)]
    er = ((normal[0] - normal[1]).abs() * keep).mean()
    whole = [torch.cat([1 - one.amax(1, keepdim=True), one], dim=1).detach() for one in normal]
    ecr = sum(
        largest_mean((only_strongest(other) - own).abs() * keep, hard)
        for other, own in ((whole[1], refined[0]), (whole[0], refined[1]))
    )
    return er, torch.as_tensor(ecr)


def min_max(maps: Tensor) -> Tensor:
    """Rectified maps `(B, C, h, w)`, each from its minimum to its maximum in [0, 1)."""
    positive = maps.float().relu()
    low, high = positive.amin((2, 3), keepdim=True), positive.amax((2, 3), keepdim=True)
    return (positive - low - _EPS).relu() / (high - low + _EPS)


def only_strongest(maps: Tensor) -> Tensor:
    """`(B, 1 + T, h, w)`: at each pixel the largest foreground value alone; the background as it is."""
    foreground = maps[:, 1:]
    strongest = torch.where(foreground == foreground.amax(1, keepdim=True), foreground, 0.0)
    return torch.cat([maps[:, :1], strongest], dim=1)


def largest_mean(values: Tensor, share: float) -> Tensor:
    """Mean over images of the mean of the largest values of `(B, ...)`."""
    flat = values.flatten(1)
    return flat.topk(max(1, int(flat.shape[1] * share)), dim=1, sorted=False).values.mean()


def lowest_activation(refined: Tensor, tags: Tensor, *, share: float = 0.25) -> Tensor:
    """Mean activation of the pixels whose strongest tagged class is weakest: it moves the best background threshold.

    Args:
        refined: `(B, 1 + T, h, w)`.
        tags: `(B, T)` multi-hot.
        share: of the pixels of an image.

    Source: code of SEAM (`adaptive_min_pooling_loss`); not in the paper.
    """
    strongest = (refined[:, 1:] * tags[:, :, None, None]).amax(1).relu().flatten(1)
    return strongest.topk(max(1, int(strongest.shape[1] * share)), dim=1, largest=False, sorted=False).values.mean()
