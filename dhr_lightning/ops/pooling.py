"""Class-level average pooling of features, and the similarity of every cell to a class."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_choice, check_dims, check_finite, check_shape, full_precision
from dhr_lightning.ops.cam import index_classes
from dhr_lightning.ops.classes import ImageClasses

_CHANNELS = 64


def cell_labels(
    mask: Tensor,
    classes: ImageClasses,
    *,
    grid: tuple[int, int],
    mode: Literal["majority", "area"] = "majority",
) -> Tensor:
    """Assign the cells of a feature grid to the classes of a mask.

    Args:
        mask: `(B, H, W)` int class values in [0, 255].
        classes: K classes of each image; any other value in the mask counts as ignore, and only valid pixels count.
        grid: `(h, w)` of the feature grid over the same canvas.
        mode: `"majority"` gives a cell to the class (or ignore) with most of its pixels, the first at a tie;
            `"area"` splits it by area.

    Returns:
        `(B, K, h*w)` float weights in [0, 1]. A class that wins no cell but owns pixels gets its area weights, so no
        class of the mask is left without a centroid.

    Source: class-level average pooling of DHR (arXiv:2404.00380).
    Differs: exact windows instead of floored ones, the area fallback, and no classes but those of the image.
    """
    check_dims("mask", mask, "B H W")
    check_choice("mode", mode, ("majority", "area"))
    index = index_classes(mask, classes.keys)  # (B, H, W)
    count = classes.keys.shape[1]
    if classes.valid is not None:
        check_shape("valid", classes.valid, mask.shape, "B H W")
        index = torch.where(classes.valid, index, count + 1)
    area = _window_shares(index, count + 2, grid)[:, :-1]  # (B, K + 1, N)
    if mode == "area":
        return area[:, :-1]
    winner = torch.where(area.any(1), area.max(1).indices, -1)  # (B, N)
    position = torch.arange(count, device=mask.device)[:, None]
    majority = (winner[:, None] == position).float()  # (B, K, N)
    return torch.where(majority.any(2, keepdim=True), majority, area[:, :-1])


def _window_shares(index: Tensor, values: int, grid: tuple[int, int]) -> Tensor:
    """Share `(B, V, h*w)` of each value of `index` `(B, H, W)` in the window of each cell.

    Windows may overlap by a pixel, so pixels are counted between all edges of windows, and the counts are summed per
    window: one pass over the pixels, whatever the number of classes.
    """
    (row, top, bottom, rows), (column, left, right, columns) = (
        _edges(length, cells, index.device) for length, cells in zip(index.shape[1:], grid, strict=True)
    )
    image = torch.arange(len(index), device=index.device)[:, None, None]
    place = (image * values + index) * (rows * columns) + (row[:, None] * columns + column)  # (B, H, W)
    count = torch.bincount(place.flatten(), minlength=len(index) * values * rows * columns)
    total = functional.pad(count.view(-1, values, rows, columns).cumsum(2).cumsum(3), (1, 0, 1, 0))
    inside = total[:, :, bottom] - total[:, :, top]  # (B, V, h, columns + 1)
    inside = inside[..., right] - inside[..., left]  # (B, V, h, w)
    return (inside / inside.sum(1, keepdim=True)).flatten(2)


@lru_cache(maxsize=64)
def _edges(length: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """Piece of each pixel between all window edges, first and last edge of each cell's window, number of pieces."""
    cell = torch.arange(cells, device="cpu")
    start, end = cell * length // cells, -(-(cell + 1) * length // cells)
    edges = torch.tensor(sorted({*start.tolist(), *end.tolist()}), device="cpu")
    piece = torch.bucketize(torch.arange(length, device="cpu"), edges, right=True) - 1
    first, last = torch.bucketize(start, edges), torch.bucketize(end, edges)
    return piece.to(device), first.to(device), last.to(device), len(edges) - 1


def class_average_pooling(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Average the features of each class into one unit vector.

    Args:
        features: `(B, D, h, w)`, finite everywhere (a NaN times weight 0 is still NaN).
        weights: `(B, K, h*w)` >= 0, as given by `cell_labels`.

    Returns:
        Unit centroids `(B, K, D)` float, and `(B, K)` bool that tells which exist; the others are 0.

    Raises:
        ValueError: if a shape does not fit or `features` are not finite.
    """
    check_dims("features", features, "B D h w")
    cells = features.shape[2] * features.shape[3]
    check_shape("weights", weights, (len(features), weights.shape[1], cells), "B K h*w")
    with full_precision(features):
        rows = cells_first(features)
        centroids = as_float(weights).to(rows.dtype) @ rows  # (B, K, D)
        norm = torch.linalg.vector_norm(centroids, dim=-1, keepdim=True)
        check_finite("features", features, seen=norm)
        return centroids / norm.clamp_min(torch.finfo(rows.dtype).tiny), norm[..., 0] > 0


def cosine_heatmaps(features: Tensor, centroids: Tensor) -> Tensor:
    """Cosine similarity of every cell to every centroid.

    Args:
        features: `(B, D, h, w)`, any scale; a zero vector gives 0.
        centroids: `(B, K, D)` unit vectors.

    Returns:
        `(B, K, h, w)` float in [-1, 1]. Normalised features are never stored.

    Raises:
        ValueError: if a shape does not fit or `features` are not finite.
    """
    check_dims("features", features, "B D h w")
    batch, depth, height, width = features.shape
    check_shape("centroids", centroids, (batch, centroids.shape[1], depth), "B K D")
    with full_precision(features):
        features = as_float(features)
        rows = cells_first(features)  # (B, N, D)
        norm = _cell_norm(features)  # (B, N)
        check_finite("features", features, seen=norm)
        product: Tensor = as_float(centroids).to(rows.dtype) @ rows.mT  # (B, K, N)
        cosine: Tensor = product / norm.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
        return cosine.clamp(-1.0, 1.0).view(batch, -1, height, width)


def class_cosines(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pool the classes and compare every cell with them, as the two functions above in one pass over the features.

    Args:
        features: `(B, D, h, w)`, finite everywhere.
        weights: `(B, K, h*w)` >= 0, as given by `cell_labels`.

    Returns:
        Cosines `(B, K, h, w)`, unit centroids `(B, K, D)`, and `(B, K)` bool that tells which exist.

    Raises:
        ValueError: if a shape does not fit or `features` are not finite.
    """
    check_dims("features", features, "B D h w")
    batch, depth, height, width = features.shape
    if features.is_contiguous(memory_format=torch.channels_last):
        centroids, exists = class_average_pooling(features, weights)
        return cosine_heatmaps(features, centroids), centroids, exists
    check_shape("weights", weights, (batch, weights.shape[1], height * width), "B K h*w")
    with full_precision(features):
        size = _CHANNELS if features.device.type == "cpu" else depth  # launches cost more than passes on a GPU
        means, product, square = [], torch.zeros((), device=features.device), torch.zeros((), device=features.device)
        for part in torch.split(features.flatten(2), size, dim=1):
            rows = as_float(part)  # (B, d, N), which stays in the cache
            means.append(as_float(weights).to(rows.dtype) @ rows.mT)  # (B, K, d)
            product = product + means[-1] @ rows
            square = square + rows.square().sum(1)
        check_finite("features", features, seen=square)
        mean = torch.cat(means, dim=2)
        tiny = torch.finfo(mean.dtype).tiny
        norm = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
        cosine = product / norm.clamp_min(tiny) / square.sqrt().clamp_min(tiny)[:, None]
        return cosine.clamp(-1.0, 1.0).view(batch, -1, height, width), mean / norm.clamp_min(tiny), norm[..., 0] > 0


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
