"""Thresholds chosen from the scores themselves, without any label."""

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_dims, check_positive, check_shape

BINS = 256


def foreground_histogram(cam: Tensor, *, valid: Tensor | None = None, bins: int = BINS) -> Tensor:
    """Count the pixels of each image by their largest activation.

    Args:
        cam: `(B, K, h, w)` normalised maps in [0, 1]; rows of absent classes are 0.
        valid: `(B, h, w)` bool, pixels that count.
        bins: number of equal bins on [0, 1], >= 2.

    Returns:
        `(B, bins)` int64; histograms of several batches may be summed.

    Raises:
        ValueError: if a shape is another one or an activation is not finite.
    """
    check_dims("cam", cam, "B K h w")
    check_positive("bins - 1", bins - 1)
    best = as_float(cam).amax(1)  # (B, h, w)
    if not torch.isfinite(best).all():
        raise ValueError("Expected finite activations in `cam`, but got NaN or infinity.")
    slot = (best * bins).long().clamp(0, bins - 1)
    if valid is not None:
        check_shape("valid", valid, best.shape, "B h w")
        slot = slot.masked_fill(~valid, bins)  # one more bin, cut off below
    image = torch.arange(len(cam), device=cam.device)[:, None, None]
    counts = torch.bincount((image * (bins + 1) + slot).flatten(), minlength=len(cam) * (bins + 1))
    return counts.view(len(cam), bins + 1)[:, :-1]


def otsu_threshold(histogram: Tensor) -> Tensor:
    """Split each histogram where the variance between its two parts is largest.

    Args:
        histogram: `(..., bins)` counts over equal bins of [0, 1].

    Returns:
        `(...)` float64, an edge between two bins, in (0, 1); the middle of the edges that are equally good, which for
        an empty histogram is 1/2.

    Raises:
        ValueError: if there are fewer than two bins.

    Source: Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 1979, Eq. 18.
    """
    bins = histogram.shape[-1]
    check_positive("bins - 1", bins - 1)
    weight = histogram.double()
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1)
    centre = (torch.arange(bins, device=weight.device, dtype=torch.float64) + 0.5) / bins
    below = weight.cumsum(-1)[..., :-1]  # (..., bins - 1), mass under each inner edge
    moment = (weight * centre).cumsum(-1)
    mean = moment[..., -1:]
    spread = below * (weight.sum(-1, keepdim=True) - below)
    between = torch.where(spread > 0, (mean * below - moment[..., :-1]).square() / spread.clamp_min(1e-300), 0.0)
    best = between >= between.amax(-1, keepdim=True) * (1 - 1e-12)
    edges = torch.arange(1, bins, device=weight.device, dtype=torch.float64) / bins
    return (edges * best).sum(-1) / best.sum(-1)


def exponent_of(threshold: Tensor) -> Tensor:
    """Exponent of the power background score that meets an activation at a threshold: `(1 - t)^γ = t`.

    Args:
        threshold: any shape, in (0, 1).

    Returns:
        γ > 0 of the same shape: 2 for 0.382, 1 for 0.5.

    Raises:
        ValueError: if a threshold is outside (0, 1).
    """
    inside = (threshold > 0) & (threshold < 1)
    if not inside.all():
        raise ValueError(f"Expected `threshold` in (0, 1), but got {threshold[~inside].tolist()[:3]}.")
    return threshold.log() / (-threshold).log1p()
