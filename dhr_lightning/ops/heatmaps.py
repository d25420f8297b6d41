"""Class heatmaps from features, and their rebalancing by a second kind of features."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_choice, check_positive
from dhr_lightning.ops.cam import min_max_normalize
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.pooling import cell_labels, class_cosines
from dhr_lightning.ops.resize import resize_maps
from dhr_lightning.ops.transport.plan import Stopping, TransportBackend, transport_posterior, transport_weights

HeatmapMode = Literal["min_max", "relu", "softmax"]
Pooling = Literal["majority", "area"]


class ClassHeatmaps(NamedTuple):
    """Heatmaps of an image's classes."""

    maps: Tensor  # (B, K, h, w) in [0, 1]
    centroids: Tensor  # (B, K, D), unit length
    active: Tensor  # (B, K) bool, classes that have a centroid


def class_heatmaps(
    features: Tensor,
    mask: Tensor,
    classes: ImageClasses,
    *,
    levels: Sequence[Tensor] = (),
    mode: HeatmapMode = "min_max",
    temperature: float = 0.1,
    pooling: Pooling = "majority",
) -> ClassHeatmaps:
    """Compare every cell with the average feature of each class of a mask.

    Args:
        features: `(B, D, h, w)`, finite.
        mask: `(B, H, W)` int64 class values.
        classes: K classes of each image.
        levels: more features `(B, D, h, w)`, each on its own grid over the same canvas; all cosines are averaged.
        mode: `"min_max"` scales each cosine map to [0, 1] over the valid cells; `"relu"` takes its positive part;
            `"softmax"` gives the share of each class per cell.
        temperature: of the softmax, > 0.
        pooling: see `cell_labels`.

    Returns:
        Heatmaps, centroids of `features`, and classes that have one; maps of the others and invalid cells are 0.

    Source: DHR (arXiv:2404.00380), USS rebalancing: ReLU in the paper, min-max in its code.
    Differs: softmax and `levels` are ours.
    """
    check_choice("heatmap", mode, ("min_max", "relu", "softmax"))
    check_positive("temperature", temperature)
    grid = (features.shape[2], features.shape[3])
    weights = cell_labels(mask, classes, grid=grid, mode=pooling)  # (B, K, N)
    cosine, centroids, active = class_cosines(features, weights)
    for level_cosine, _, level_valid in _level_cosines(levels, mask, classes, pooling):
        cosine = cosine + resize_maps(level_cosine, grid, valid=level_valid)
    cosine = cosine / (1 + len(levels))
    valid_grid = classes.valid_cells(grid)
    if mode == "min_max":
        return ClassHeatmaps(min_max_normalize(cosine, valid=valid_grid, present=active), centroids, active)
    if mode == "relu":
        maps = cosine.clamp_min(0.0) * active[..., None, None]
        return ClassHeatmaps(maps if valid_grid is None else maps * valid_grid[:, None], centroids, active)
    logits = (cosine / temperature).masked_fill(~active[..., None, None], -torch.inf)
    maps = logits.softmax(1).nan_to_num(0.0)  # an image without any active class has no shares
    return ClassHeatmaps(maps if valid_grid is None else maps * valid_grid[:, None], centroids, active)


def supervised_heatmaps(
    levels: Sequence[Tensor],
    mask: Tensor,
    classes: ImageClasses,
    *,
    groups: Tensor,
    grid: tuple[int, int],
    pooling: Pooling = "majority",
) -> Tensor:
    """Average the heatmaps of several feature levels, for the images that have groups.

    Args:
        levels: `(B, D, h, w)` features per level, each on its own grid over the same canvas; one at least.
        mask: `(B, H, W)` int64 class values.
        classes: K classes of each image.
        groups: `(B, G, K)` bool, see `correlation_groups`; few images have any.
        grid: `(h, w)` of the result.
        pooling: see `cell_labels`.

    Returns:
        `(B, K, h, w)` in [0, 1], min-max over the mean of the levels; 0 for images without groups.

    Source: published DHR code, mean of C4 and C5 maps.
    Differs: maps, not features, are resized to the grid, which moves K instead of D channels.
    """
    picked = groups.flatten(1).any(1)
    chosen = picked.nonzero()[:, 0]
    if len(chosen) == 0:
        return as_float(levels[0]).new_zeros(*classes.keys.shape, *grid)
    # features are large: copying most of them costs more than comparing all
    copy_chosen = 2 * len(chosen) <= len(picked)
    if copy_chosen:
        mask, classes = mask[chosen], classes.take(chosen)
        levels = [level[chosen] for level in levels]
    maps = [
        resize_maps(min_max_normalize(cosine, valid=level_valid, present=active), grid, valid=level_valid)
        for cosine, active, level_valid in _level_cosines(levels, mask, classes, pooling)
    ]
    valid_grid = classes.valid_cells(grid)
    result = min_max_normalize(torch.stack(maps).mean(0), valid=valid_grid)
    if copy_chosen:
        return result.new_zeros(len(picked), *result.shape[1:]).index_copy(0, chosen, result)
    return result * picked[:, None, None, None]


def _level_cosines(
    levels: Sequence[Tensor], mask: Tensor, classes: ImageClasses, pooling: Pooling
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield cosines `(B, K, h, w)`, active classes and valid cells of every level, on its own grid."""
    cells: dict[tuple[int, int], Tensor] = {}  # levels on one grid share their labels
    for level in levels:
        own_grid = (level.shape[2], level.shape[3])
        if own_grid not in cells:
            cells[own_grid] = cell_labels(mask, classes, grid=own_grid, mode=pooling)
        cosine, _, active = class_cosines(level, cells[own_grid])
        yield cosine, active, classes.valid_cells(own_grid)


def group_weights(
    heatmaps: Tensor,
    groups: Tensor,
    *,
    active: Tensor | None = None,
    valid: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    backend: TransportBackend = "torch",
) -> Tensor:
    """Product over the groups of a class of its transport weights among the group.

    Args:
        heatmaps: `(B, K, h, w)` in [0, 1].
        groups: `(B, G, K)` bool, see `correlation_groups`.
        active: `(B, K)` bool, classes that take part in the transport of every group; default: its members.
        valid: `(B, h, w)` bool, cells that count.
        epsilon: entropy weight of the plan.
        stopping: see `transport_weights`.
        backend: see `transport_weights`.

    Returns:
        `(B, K, h, w)` in [0, 1]; 1 for classes that belong to no group.

    Source: DHR (arXiv:2404.00380), WSS rebalancing, in the order of its code.
    """
    image, row = groups.any(2).nonzero(as_tuple=True)  # few images have groups: solve only those
    flat = heatmaps.flatten(2)  # (B, K, N)
    member = groups[image, row]  # (P, K)
    cells = None if valid is None else valid.flatten(1)[image]
    present = member if active is None else member | active[image]
    plan = transport_weights(  # (P, K, N)
        flat[image], valid=cells, present=present, epsilon=epsilon, stopping=stopping, backend=backend
    )
    plan = plan.masked_fill(~member[..., None], 1.0)
    index = image[:, None, None].expand_as(plan)
    return torch.ones_like(flat).scatter_reduce(0, index, plan, "prod").view_as(heatmaps)


def final_weights(
    heatmaps: Tensor,
    active: Tensor,
    *,
    marginal: Literal["uniform", "area", "mix"] = "uniform",
    area: Tensor | None = None,
    valid: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    backend: TransportBackend = "torch",
) -> Tensor:
    """Transport weights over all classes of an image.

    Args:
        heatmaps: `(B, K, h, w)` in [0, 1].
        active: `(B, K)` bool, classes that take part.
        marginal: class shares. `"uniform"` scales the weights to [0, 1] per class as in the published code; the others,
            see `transport_weights`, give the posterior.
        area: `(B, K)` >= 0, area of each class, for `"area"` and `"mix"`.
        valid: `(B, h, w)` bool, cells that count.
        epsilon: entropy weight of the plan.
        stopping: see `transport_weights`.
        backend: see `transport_weights`.

    Returns:
        `(B, K, h, w)` in [0, 1].

    Source: published DHR code (equal shares). Differs: other shares, because equal ones flood images that are
        mostly background with their small classes.
    """
    cells = None if valid is None else valid.flatten(1)
    solve = transport_weights if marginal == "uniform" else transport_posterior
    weights = solve(
        heatmaps.flatten(2),
        valid=cells,
        present=active,
        epsilon=epsilon,
        stopping=stopping,
        backend=backend,
        marginal=marginal,
        area=area,
    )
    return weights.view_as(heatmaps)
