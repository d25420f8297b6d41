"""Class activation maps in compact form: normalisation, background, and labels."""

import torch
from torch import Tensor

from dhr_lightning.ops._checks import (
    as_float,
    check_choice,
    check_dims,
    check_finite,
    check_positive,
    check_range,
    check_shape,
)
from dhr_lightning.ops.classes import ImageClasses

_EPS = 1e-5


def min_max_normalize(
    x: Tensor, *, valid: Tensor | None = None, present: Tensor | None = None, spatial_dims: int = 2
) -> Tensor:
    """Scale every class to [0, 1] over its pixels.

    Args:
        x: `(..., K, h, w)`, or `(..., K, N)` with `spatial_dims=1`; any finite range.
        valid: `(..., h, w)` or `(..., N)` bool, pixels that count; others become 0.
        present: `(..., K)` bool, classes that exist; others become 0.
        spatial_dims: how many trailing axes are pixels, 1 or 2.

    Returns:
        Same shape, float. A constant class becomes 0: it says nothing about where the class is. Constant means a
        range of at most 1e-5 of the largest magnitude, so that rounding noise is never scaled up.

    Raises:
        ValueError: if `spatial_dims` is neither 1 nor 2, or `x` has no class axis.

    Differs: the published DHR code divides by the range, unguarded or clipped at an absolute 1e-5. The limit here is
        relative, so that neither map size nor scale matters.
    """
    check_choice("spatial_dims", str(spatial_dims), ("1", "2"))
    if x.ndim <= spatial_dims:
        raise ValueError(
            f"Expected `x` of shape (..., K, {'N' if spatial_dims == 1 else 'h, w'}), but got {tuple(x.shape)}."
        )
    x = as_float(x)
    dims = tuple(range(-spatial_dims, 0))
    keep = torch.ones((), dtype=torch.bool, device=x.device).expand(x.shape)
    if valid is not None:
        keep = keep & valid.unsqueeze(-spatial_dims - 1)
    if present is not None:
        keep = keep & present.reshape(*present.shape, *[1] * spatial_dims)
    low = x.masked_fill(~keep, torch.inf).amin(dims, keepdim=True)
    high = x.masked_fill(~keep, -torch.inf).amax(dims, keepdim=True)
    empty = low > high
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    scale = torch.maximum(low.abs(), high.abs())
    flat = high - low <= _EPS * scale
    span = torch.where(flat, 1.0, high - low)
    return torch.where(keep & ~flat, (x - low) / span, 0.0)


def normalize_cam(cam: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Rectify and divide every class by its maximum.

    Args:
        cam: `(..., K, h, w)` raw activation maps, any range.
        valid: `(..., h, w)` bool, cells that count; others become 0 and never set the maximum.

    Returns:
        Same shape, float in [0, 1]. A class that is nowhere above 1e-5 stays near 0 and is not blown up.

    Raises:
        ValueError: if a value is not finite, as from a classifier whose training diverged.

    Source: `normalize` of the published DHR code (arXiv:2404.00380), maximum clipped at 1e-5.
    Differs: the maximum skips padding cells.
    """
    check_finite("cam", cam)
    cam = as_float(cam).relu()
    if valid is not None:
        cam = torch.where(valid.unsqueeze(-3), cam, 0.0)
    return cam / cam.amax((-2, -1), keepdim=True).clamp_min(_EPS)


def background_score(cam: Tensor, *, exponent: float | Tensor | None = None, threshold: float | None = None) -> Tensor:
    """Score the background from normalised foreground maps.

    Args:
        cam: `(B, K, h, w)` in [0, 1]; rows of absent classes are 0.
        exponent: power form `(1 - max_c cam)^exponent`, > 0; larger keeps more foreground. One for all images or
            `(B,)`.
        threshold: constant form, in [0, 1].

    Returns:
        `(B, 1, h, w)` in [0, 1].

    Raises:
        ValueError: unless exactly one of `exponent` and `threshold` is given.

    Source: power form of PSA (Ahn & Kwak, CVPR 2018); constant form of IRNet (Ahn et al., CVPR 2019).
    """
    check_dims("cam", cam, "B K h w")
    if (exponent is None) == (threshold is None):
        raise ValueError(f"Expected one of `exponent` and `threshold`, but got {exponent} and {threshold}.")
    best = as_float(cam).amax(1, keepdim=True)  # (B, 1, h, w)
    if threshold is not None:
        check_range("threshold", threshold, 0.0, 1.0)
        return torch.full_like(best, threshold)
    assert exponent is not None
    rest = (1.0 - best).clamp_min(0.0)
    if isinstance(exponent, Tensor):
        if not bool((exponent > 0).all()):
            raise ValueError(f"Expected `exponent` > 0, but got {exponent.tolist()}.")
        return rest.pow(exponent.to(rest).view(-1, 1, 1, 1))
    check_positive("exponent", exponent)
    return rest.pow(exponent)


def somewhere(logits: Tensor, share: float, *, valid: Tensor | None = None) -> Tensor:
    """Logit above which each class holds a share of the image at least; 0 where it does so with positive logits.

    Args:
        logits: `(B, K, h, w)` of tagged classes.
        share: of the cells, in [0, 1); 0 gives 0 everywhere.
        valid: `(B, h, w)` bool, cells of the image; `None` for all.

    Returns:
        `(B, K, 1, 1)` float <= 0.

    Raises:
        ValueError: if a shape does not fit or `share` is out of range.

    Source: ours; an image-level tag says that its class is somewhere.
    """
    check_dims("logits", logits, "B K h w")
    check_range("share", share, 0.0, 0.999)
    cells = as_float(logits).flatten(2)  # (B, K, N)
    if share == 0:
        return torch.zeros_like(cells[:, :, :1, None])
    if valid is not None:
        check_shape("valid", valid, (len(logits), *logits.shape[2:]), "B h w")
        cells = torch.where(valid.flatten(1)[:, None], cells, torch.nan)
    return torch.nanquantile(cells, 1 - share, dim=2).nan_to_num(0.0).clamp_max(0.0)[..., None, None]


def equal_activation(exponent: float) -> float:
    """Activation `t` in (0, 1) that is as large as the background score `(1 - t)^exponent`.

    A constant background score of `t` labels the same pixels as the power form does.

    Args:
        exponent: of `background_score`, > 0.

    Raises:
        ValueError: if it is not positive.
    """
    check_positive("exponent", exponent)
    low, high = 0.0, 1.0
    for _ in range(60):  # halving: the score falls and the activation rises
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) ** exponent > middle else (low, middle)
    return (low + high) / 2


def gather_classes(maps: Tensor, classes: ImageClasses) -> Tensor:
    """Pick the maps of each image's classes.

    Args:
        maps: `(B, T, h, w)`, one map per foreground class.
        classes: K classes of each image.

    Returns:
        `(B, K, h, w)`; rows of the background and of padding are 0.
    """
    check_dims("maps", maps, "B T h w")
    tag = classes.keys - classes.offset  # (B, K)
    rows = torch.arange(len(maps), device=maps.device)[:, None]
    return maps[rows, tag.clamp_min(0)].masked_fill((tag < 0)[..., None, None], 0)  # (B, K, h, w)


def labels_from_scores(
    scores: Tensor, keys: Tensor, *, present: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Turn scores into class values by their maximum over the present classes.

    Args:
        scores: `(B, K, h, w)`, higher is more likely.
        keys: `(B, K)` class values, -1 = padding.
        present: `(B, K)` bool, classes that may win; default `keys >= 0`.
        ignore_index: value given where an image has no class at all.

    Returns:
        `(B, h, w)` int64 class values; at equal scores the first class wins.
    """
    check_dims("scores", scores, "B K h w")
    check_shape("keys", keys, scores.shape[:2], "B K")
    present = keys >= 0 if present is None else present & (keys >= 0)
    best = as_float(scores).masked_fill(~present[..., None, None], -torch.inf).max(1).indices  # (B, h, w)
    values = torch.where(present, keys, ignore_index)
    return values.gather(1, best.flatten(1)).view_as(best)


def strongest_class(cam: Tensor, classes: ImageClasses) -> tuple[Tensor, Tensor]:
    """Class of the largest activation at every pixel, and that activation.

    Args:
        cam: `(B, K, H, W)`, in the order of the keys; maps of the background and of padding are not read.
        classes: K >= 1 classes of each image.

    Returns:
        `(B, H, W)` int64 class values, the first at a tie, and `(B, H, W)` float; 255 and -inf where an image has no
        foreground class.
    """
    labels = labels_from_scores(cam, classes.keys, present=classes.foreground)
    return labels, as_float(cam).masked_fill(~classes.foreground[..., None, None], -torch.inf).amax(1)


def cam_labels(cam: Tensor, classes: ImageClasses, *, threshold: float) -> Tensor:
    """Label the pixels of class activation maps: the strongest class, background where none exceeds the threshold.

    Args:
        cam: `(B, K, H, W)` normalised maps in [0, 1], as those of `strongest_class`.
        classes: K >= 1 classes of each image.
        threshold: constant score of the background, in [0, 1]; not used where the set has none.

    Returns:
        `(B, H, W)` int64 class values; 255 where an image has neither background nor class.

    Source: constant background score of IRNet (Ahn et al., CVPR 2019).
    """
    check_range("threshold", threshold, 0.0, 1.0)
    labels, score = strongest_class(cam, classes)
    return torch.where(score > threshold, labels, 0) if classes.offset else labels


def index_classes(mask: Tensor, keys: Tensor) -> Tensor:
    """Replace class values by their position in `keys`.

    Args:
        mask: `(B, H, W)` integer class values in [0, 255].
        keys: `(B, K)` class values in [0, 255], -1 = padding.

    Returns:
        `(B, H, W)` int64 in [0, K]; K stands for every value that is not among the keys of the image.
    """
    check_dims("mask", mask, "B H W")
    check_dims("keys", keys, "B K")
    batch, width = keys.shape
    table = torch.full((batch, 257), width, device=keys.device)
    position = torch.arange(width, device=keys.device).expand(batch, width)
    table = table.scatter(1, torch.where(keys >= 0, keys, 256), position)
    return table.gather(1, mask.long().flatten(1)).view(mask.shape)
