"""Class-level average pooling of features, and the similarity of every cell to a class."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_choice, check_dims, check_shape, full_precision
from dhr_lightning.ops.cam import index_classes

_CHANNELS = 64


def cell_labels(
    mask: Tensor,
    keys: Tensor,
    *,
    grid: tuple[int, int],
    valid: Tensor | None = None,
    mode: Literal["majority", "area"] = "majority",
) -> Tensor:
    """Assign the cells of a feature grid to the classes of a mask.

    Args:
        mask: `(B, H, W)` int class values in [0, 255].
        keys: `(B, K)` class values, -1 = padding. Any other value in the mask counts as ignore.
        grid: `(h, w)` of the feature grid over the same canvas.
        valid: `(B, H, W)` bool, pixels that count; default all.
        mode: `"majority"` gives a cell to the class (or ignore) with most of its pixels, the first at a tie;
            `"area"` splits it by area.

    Returns:
        `(B, K, h*w)` float weights in [0, 1]. A class that wins no cell but owns pixels gets its area weights, so no
        class of the mask is left without a centroid.

    Source: class-level average pooling of DHR (arXiv:2404.00380).
    Differs: exact windows instead of floored ones, the area fallback, and no classes outside `keys`.
    """
    check_dims("mask", mask, "B H W")
    check_dims("keys", keys, "B K")
    check_choice("mode", mode, ("majority", "area"))
    index = index_classes(mask, keys)  # (B, H, W)
    if valid is not None:
        check_shape("valid", valid, mask.shape, "B H W")
        index = torch.where(valid, index, -1)
    classes = keys.shape[1]
    position = torch.arange(classes + 1, device=mask.device, dtype=torch.int16)[:, None, None]
    index = index.to(torch.int16)  # the comparison below is limited by memory
    area = functional.adaptive_avg_pool2d((index[:, None] == position).float(), grid).flatten(2)  # (B, K + 1, N)
    if mode == "area":
        return area[:, :-1]
    winner = torch.where(area.any(1), area.argmax(1), -1)  # (B, N)
    majority = (winner[:, None] == position[:-1, :, 0]).float()  # (B, K, N)
    return torch.where(majority.any(2, keepdim=True), majority, area[:, :-1])


def class_average_pooling(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Average the features of each class into one unit vector.

    Args:
        features: `(B, D, h, w)`, finite everywhere (a NaN times weight 0 is still NaN).
        weights: `(B, K, h*w)` >= 0, as given by `cell_labels`.

    Returns:
        Unit centroids `(B, K, D)` float, and `(B, K)` bool that tells which exist; the others are 0.
    """
    check_dims("features", features, "B D h w")
    cells = features.shape[2] * features.shape[3]
    check_shape("weights", weights, (len(features), weights.shape[1], cells), "B K h*w")
    with full_precision(features):
        rows = cells_first(features)
        centroids = as_float(weights).to(rows.dtype) @ rows  # (B, K, D)
        norm = torch.linalg.vector_norm(centroids, dim=-1, keepdim=True)
        return centroids / norm.clamp_min(torch.finfo(rows.dtype).tiny), norm[..., 0] > 0


def cosine_heatmaps(features: Tensor, centroids: Tensor) -> Tensor:
    """Cosine similarity of every cell to every centroid.

    Args:
        features: `(B, D, h, w)`, any scale; a zero vector gives 0.
        centroids: `(B, K, D)` unit vectors.

    Returns:
        `(B, K, h, w)` float in [-1, 1]. Normalised features are never stored.
    """
    check_dims("features", features, "B D h w")
    batch, depth, height, width = features.shape
    check_shape("centroids", centroids, (batch, centroids.shape[1], depth), "B K D")
    with full_precision(features):
        features = as_float(features)
        rows = cells_first(features)  # (B, N, D)
        norm = _cell_norm(features)  # (B, N)
        product: Tensor = as_float(centroids).to(rows.dtype) @ rows.mT  # (B, K, N)
        cosine: Tensor = product / norm.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
        return cosine.clamp(-1.0, 1.0).view(batch, -1, height, width)


def cells_first(features: Tensor) -> Tensor:
    """View `(B, D, h, w)` features as float rows `(B, h*w, D)` without a copy in either memory format."""
    features = as_float(features)
    if features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).flatten(1, 2)
    return features.flatten(2).mT


def _cell_norm(features: Tensor) -> Tensor:
    """Length `(B, h*w)` of every cell's feature vector."""
    if features.is_contiguous(memory_format=torch.channels_last):
        length: Tensor = torch.linalg.vector_norm(cells_first(features), dim=-1)
        return length
    # a reduction over a strided axis is ten times slower than sums of a few channels that stay in the cache
    parts = torch.split(as_float(features).flatten(2), _CHANNELS, dim=1)
    return torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()
