"""Exact nearest neighbours by cosine."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import check_dims, check_shape

_CELLS = 2**26  # similarities held at once: 256 MiB


def nearest_neighbours(vectors: Tensor, groups: Tensor, count: int) -> Tensor:
    """Find the most similar vectors that belong to another group.

    Args:
        vectors: `(N, D)` float, not zero; need not be normalised.
        groups: `(N,)` int, such as the image that a crop was cut from.
        count: neighbours of each vector, >= 1.

    Returns:
        `(N, count)` int64 indices, the most similar first.

    Raises:
        ValueError: if a vector has fewer than `count` others outside its group.
    """
    check_dims("vectors", vectors, "N D")
    check_shape("groups", groups, (len(vectors),), "N")
    largest = int(torch.unique(groups, return_counts=True)[1].max())
    if len(vectors) - largest < count:
        raise ValueError(f"Expected at least {count} vectors outside each group, but got {len(vectors) - largest}.")
    unit = functional.normalize(vectors, dim=1)
    rows = max(1, _CELLS // len(unit))
    nearest = []
    for part, group in zip(torch.split(unit, rows), torch.split(groups, rows), strict=True):
        similarity = (part @ unit.T).masked_fill_(group[:, None] == groups, -torch.inf)  # (rows, N)
        nearest.append(similarity.topk(count).indices)
    return torch.cat(nearest)
