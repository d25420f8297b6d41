"""Losses of SFC, and what its classes weigh in them."""

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-5


def distribution_coefficients(counts: Tensor, *, resampled: float) -> Tensor:
    """Weights of classes: large where a class is much more or much less frequent than others.

    `a_c = sum_i |n_c - n_i| / (n_c + N)`, divided by their mean.

    Args:
        counts: `(T,)` training images that show each class (n).
        resampled: images that the bank adds of a class in a fit, on average (N), >= 0.

    Returns:
        `(T,)` with a mean of 1; ones where all classes are equally frequent.

    Source: SFC, Eq. 6 as its code computes it (the printed form has values of a thousandth).
    """
    numbers = counts.double()
    apart = (numbers[:, None] - numbers[None]).abs().sum(1)
    weights = apart / (numbers + resampled).clamp_min(1.0)
    mean = weights.mean()
    return (weights / mean if mean > 0 else torch.ones_like(weights)).float()


def prototype_loss(by_weights: Tensor, by_prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Mean difference of both maps, each prototype map scaled to a maximum of 1; the background weighs 1.

    Args:
        by_weights: `(B, 1 + T, h, w)`.
        by_prototypes: `(B, 1 + T, h, w)`.
        coefficients: `(T,)`.

    Source: SFC, Eq. 5 and its code.
    """
    scaled = by_prototypes / (by_prototypes.amax((2, 3), keepdim=True) + _EPS)
    weights = F.pad(coefficients, (1, 0), value=1.0).view(1, -1, 1, 1)
    return (weights * (by_weights - scaled).abs()).mean()


def scale_loss(large: Tensor, small: Tensor, tags: Tensor, coefficients: Tensor) -> Tensor:
    """Mean difference of the maps of the tags at two sizes of the image, at the resolution of the smaller.

    Args:
        large: `(B, 1 + T, h, w)`.
        small: `(B, 1 + T, h', w')`.
        tags: `(B, T)` multi-hot.
        coefficients: `(T,)`.

    Source: SFC, Eq. 7 and its code.
    """
    reduced = F.interpolate(large[:, 1:], small.shape[-2:], mode="bilinear", align_corners=True)
    weights = coefficients.view(1, -1, 1, 1) * tags[:, :, None, None]
    return (weights * (reduced - small[:, 1:]).abs()).mean()
