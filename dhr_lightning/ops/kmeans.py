"""K-means with seeded starts: one data set, or many masked sets of unit vectors at once."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_dims, check_finite, check_positive, check_shape, full_precision

_CHUNK = 65536  # rows whose distances to all centroids are held at once


def kmeans(
    x: Tensor, k: int, *, iterations: int, generator: torch.Generator | None = None, spherical: bool = False
) -> Tensor:
    """Cluster the rows of one matrix (Lloyd's iterations from a k-means++ start).

    Args:
        x: `(N, D)` finite; rows are scaled to unit length when `spherical`.
        k: number of clusters, 1 <= k <= N.
        iterations: how many, >= 1.
        generator: CPU generator that makes the start repeatable.
        spherical: cosine instead of Euclidean distance; centroids have unit length.

    Returns:
        `(k, D)` float centroids. A cluster that loses all its rows moves to the row that is farthest from its own
        centroid (the m-th empty cluster to the m-th farthest row).

    Raises:
        ValueError: if `x` is not 2-D or not finite, `iterations` is not positive, or `k` is outside [1, N].

    Source: Arthur & Vassilvitskii 2007 (k-means++); Dhillon & Modha 2001 (spherical form).
    """
    check_dims("x", x, "N D")
    check_positive("iterations", iterations)
    if not 1 <= k <= len(x):
        raise ValueError(f"Expected `k` in [1, N] with N = {len(x)} rows, but got {k}.")
    check_finite("x", x)
    with full_precision(x):
        rows = functional.normalize(as_float(x), dim=1) if spherical else as_float(x)
        centroids = _start(rows, torch.rand(k, generator=generator, device="cpu"))
        for _ in range(iterations):
            centroids = _lloyd_iteration(rows, centroids, spherical)
        return centroids


def batched_spherical_kmeans(
    x: Tensor, member: Tensor, k: int, *, iterations: int, seed: int, limit: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster many sets of unit vectors at once.

    Args:
        x: `(B, N, D)` finite, any scale.
        member: `(B, N)` bool, or `(B, P, N)` for P sets that share the vectors of an image.
        k: clusters per set, >= 1. A set with fewer members gets as many clusters as members.
        iterations: how many, >= 1.
        seed: every set uses the same random numbers, so a result does not depend on the rest of the batch.
        limit: `(B,)` or `(B, P)` int, further bound on the clusters of a set.

    Returns:
        Unit centroids `(B, k, D)` or `(B, P, k, D)`, 0 where unused, and `(B, k)` or `(B, P, k)` bool that tells
        which are used. Empty clusters follow the rule of `kmeans`.

    Raises:
        ValueError: if a shape does not fit, `x` is not finite, or `k` or `iterations` is not positive.
    """
    check_dims("x", x, "B N D")
    check_finite("x", x)
    check_positive("k", k)
    check_positive("iterations", iterations)
    single = member.ndim == 2
    member = member[:, None] if single else member
    check_shape("member", member, (len(x), member.shape[1], x.shape[1]), "B P N")
    size = member.sum(-1)  # (B, P)
    if limit is not None:
        size = torch.minimum(size, limit.view_as(size))
    used = torch.arange(k, device=x.device) < size[..., None]  # (B, P, k)
    with full_precision(x):
        unit = functional.normalize(as_float(x), dim=2)
        uniform = torch.rand(k, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        centroids = _batched_start(unit, member, uniform) * used[..., None]
        for _ in range(iterations):
            centroids = _batched_iteration(unit, member, centroids, used)
    return (centroids[:, 0], used[:, 0]) if single else (centroids, used)


def _pick(weights: Tensor, fallback: Tensor, uniform: Tensor) -> Tensor:
    """Draw an index of `(..., N)` with probability proportional to the weights, or to `fallback` if all are 0."""
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, fallback)
    cumulated = weights.cumsum(-1)
    index = (cumulated <= uniform * cumulated[..., -1:]).sum(-1)
    position = torch.arange(weights.shape[-1], device=weights.device)
    # rounding may push a draw past the end, where weights are 0
    return torch.minimum(index, torch.where(weights > 0, position, 0).amax(-1))


def _start(rows: Tensor, uniform: Tensor) -> Tensor:
    """Choose `len(uniform)` rows, far ones more often; the same row twice only if no other is left."""
    draws = uniform.to(rows.device)
    every = torch.ones_like(rows[:, 0])
    nearest = every
    chosen: list[Tensor] = []
    for step, draw in enumerate(draws):
        index = _pick(nearest, every, draw)
        chosen.append(rows[index])
        distance = (rows - rows[index]).square().sum(1)
        nearest = distance if step == 0 else torch.minimum(nearest, distance)
    return torch.stack(chosen)


def _lloyd_iteration(rows: Tensor, centroids: Tensor, spherical: bool) -> Tensor:
    """Assign every row to its nearest centroid and average."""
    k = len(centroids)
    sums, counts = torch.zeros_like(centroids), torch.zeros_like(centroids[:, 0])
    distances: list[Tensor] = []
    for part in torch.split(rows, _CHUNK):
        square = part.square().sum(1, keepdim=True) + centroids.square().sum(1) - 2.0 * part @ centroids.T
        distance, label = square.min(1)
        member = functional.one_hot(label, k).to(rows.dtype)  # (n, k); a product is deterministic, index_add is not
        sums += member.T @ part
        counts += member.sum(0)
        distances.append(distance)
    empty = counts == 0
    farthest = torch.cat(distances).topk(k).indices
    rank = (empty.long().cumsum(0) - 1).clamp_min(0)
    mean = functional.normalize(sums, dim=1) if spherical else sums / counts.clamp_min(1.0)[:, None]
    return torch.where(empty[:, None], rows[farthest[rank]], mean)


def _rows_at(unit: Tensor, index: Tensor) -> Tensor:
    """Rows `(B, ..., D)` of `(B, N, D)` at `(B, ...)` indices."""
    image = torch.arange(len(unit), device=unit.device).view(-1, *[1] * (index.ndim - 1))
    return unit[image, index]


def _batched_start(unit: Tensor, member: Tensor, uniform: Tensor) -> Tensor:
    """K-means++ start `(B, P, k, D)` of every set."""
    draws = uniform.to(unit.device)
    every = member.to(unit.dtype)
    nearest = every
    chosen: list[Tensor] = []
    for step, draw in enumerate(draws):
        index = _pick(nearest, every, draw)  # (B, P)
        chosen.append(_rows_at(unit, index))  # (B, P, D)
        distance = (1.0 - chosen[-1] @ unit.mT).clamp_min(0.0) * every  # (B, P, N)
        nearest = distance if step == 0 else torch.minimum(nearest, distance)
    return torch.stack(chosen, dim=2)


def _batched_iteration(unit: Tensor, member: Tensor, centroids: Tensor, used: Tensor) -> Tensor:
    """One iteration of every set; memory is `(B, P, k, N)`, never times D."""
    batch, sets, k, depth = centroids.shape
    cosine = (centroids.view(batch, sets * k, depth) @ unit.mT).view(batch, sets, k, -1)
    cosine = cosine.masked_fill(~used[..., None], -torch.inf)
    position = torch.arange(k, device=unit.device)[:, None]
    best, winner = cosine.max(2, keepdim=True)  # not argmax, which takes 20 times as long over an inner axis
    mine = (winner == position) & member[:, :, None]  # (B, P, k, N)
    sums = (mine.to(unit.dtype).flatten(1, 2) @ unit).view_as(centroids)
    empty = used & ~mine.any(3)  # (B, P, k)
    own = best[:, :, 0].masked_fill(~member, torch.inf)  # (B, P, N)
    farthest = own.topk(min(k, own.shape[2]), largest=False).indices  # (B, P, <= k)
    rank = (empty.long().cumsum(2) - 1).clamp(0, farthest.shape[2] - 1)
    moved = _rows_at(unit, farthest.gather(2, rank))  # (B, P, k, D)
    updated = torch.where(empty[..., None], moved, functional.normalize(sums, dim=3))
    return updated * used[..., None]
