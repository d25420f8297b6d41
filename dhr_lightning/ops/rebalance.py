"""Dual features-driven hierarchical rebalancing: seeds, unsupervised and supervised features, final mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dhr_lightning.ops._checks import full_precision
from dhr_lightning.ops._rebalance_checks import check_input
from dhr_lightning.ops.cam import index_classes, labels_from_scores, min_max_normalize
from dhr_lightning.ops.correlation import correlation_groups
from dhr_lightning.ops.heatmaps import class_heatmaps, final_weights, group_weights, supervised_heatmaps
from dhr_lightning.ops.pooling import cell_labels
from dhr_lightning.ops.profiles import RebalanceSettings
from dhr_lightning.ops.refine import Refine
from dhr_lightning.ops.resize import resize_maps, valid_cells
from dhr_lightning.ops.seeds import merge_seed, transport_seed

IGNORE = 255


@dataclass(frozen=True)
class RebalanceResult:
    """Final mask and every intermediate map; later stages are None when `uss` is off.

    Attributes:
        mask: `(B, H, W)` int64, the result: class values of the image's keys, 255 outside the image.
        seed: `(B, H, W)` int64, seeds of the tagged classes, 255 elsewhere; all 255 with `seed="none"`.
        init: `(B, H, W)` int64, input mask with pasted seeds.
        recovered: `(B, K)` bool, classes whose seed was pasted.
        active: `(B, K)` bool, classes that have a centroid.
        groups: `(B, G, K)` bool, alike classes; all False with `wss` off.
        uss_heatmaps: `(B, K, h, w)` of the unsupervised features.
        wss_heatmaps: `(B, K, h, w)` of the supervised features; 0 for images without groups.
        heatmaps: `(B, K, h, w)` from which the mask is taken, before refinement.
    """

    mask: Tensor
    seed: Tensor
    init: Tensor
    recovered: Tensor
    active: Tensor | None = None
    groups: Tensor | None = None
    uss_heatmaps: Tensor | None = None
    wss_heatmaps: Tensor | None = None
    heatmaps: Tensor | None = None


@torch.no_grad()
def rebalance(
    image: Tensor,
    mask: Tensor,
    cam: Tensor,
    uss: Tensor | None = None,
    wss: Sequence[Tensor] = (),
    *,
    keys: Tensor,
    present: Tensor,
    offset: int,
    valid: Tensor | None = None,
    settings: RebalanceSettings | None = None,
    refine_seed: Refine | None = None,
    refine_final: Refine | None = None,
) -> RebalanceResult:
    """Recover vanished classes and redraw masks from image features.

    Args:
        image: `(B, H, W, 3)` uint8 RGB.
        mask: `(B, H, W)` integer class values in [0, 255], 255 = ignore; values outside `keys` count as ignore.
        cam: `(B, K, h, w)` normalised class activation maps in [0, 1], in the order of `keys`.
        uss: `(B, D, h, w)` unsupervised features over the same canvas, finite.
        wss: supervised features `(B, D, h, w)` per level, each on its own grid over the same canvas.
        keys: `(B, K)` class values of the image (see `compact_keys`), -1 = padding.
        present: `(B, K)` bool, `keys >= 0`.
        offset: 1 if class value 0 is the background, 0 if the set has none.
        valid: `(B, H, W)` bool, pixels inside the image; default all.
        settings: default `RebalanceSettings()`.
        refine_seed: refinement of the seeds, called as `refine(image, score, present, valid=valid)`.
        refine_final: refinement of the final heatmaps, likewise.

    Returns:
        The final mask with all intermediate maps. No step depends on the other images of the batch.

    Raises:
        ValueError: if a shape, type, device or value does not fit, something is not finite, there is no image or no
            class, or `settings` asks for features that were not given.

    Source: DHR (arXiv:2404.00380), in the order of its code.
    Differs: seeds compete with a background, aligned grids, area fallback of the pooling, tags filter the classes;
        options that are ours say so in `RebalanceSettings`.
    """
    settings = settings or RebalanceSettings()
    check_input(image, mask, cam, uss, wss, keys, present, offset, valid, settings)
    with full_precision(cam):
        foreground = present & (keys >= offset)
        mask = mask.long() if valid is None else mask.long().masked_fill(~valid, IGNORE)
        seed = torch.full_like(mask, IGNORE)
        if settings.seed != "none":
            seed = _make_seed(image, cam, keys, foreground, valid, settings, refine_seed)
        init, recovered = merge_seed(
            mask,
            seed,
            keys,
            foreground,
            mode=settings.seed,
            min_pixels=settings.min_pixels,
            min_share=settings.min_share,
        )
        merged = RebalanceResult(init, seed, init, recovered)
        if not settings.uss or uss is None:
            return merged
        return _redraw(merged, image, uss, wss, keys, foreground, valid, settings, refine_final)


def _make_seed(
    image: Tensor,
    cam: Tensor,
    keys: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    settings: RebalanceSettings,
    refine: Refine | None,
) -> Tensor:
    return transport_seed(
        image,
        cam,
        keys,
        foreground,
        valid=valid,
        transport=settings.seed_transport,
        epsilon=settings.epsilon,
        gamma=settings.gamma,
        background=settings.seed_background,
        stopping=settings.stopping,
        refine=refine if settings.refine_seed else None,
    )


def _redraw(
    merged: RebalanceResult,
    image: Tensor,
    uss: Tensor,
    wss: Sequence[Tensor],
    keys: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    settings: RebalanceSettings,
    refine: Refine | None,
) -> RebalanceResult:
    """Replace the merged mask by labels from rebalanced heatmaps."""
    grid, init = (uss.shape[2], uss.shape[3]), merged.init
    levels = {"all": wss, "first": wss[:1], "last": wss[-1:]}[settings.wss_levels]
    valid_grid = None if valid is None else valid_cells(valid, grid)
    maps, centroids, active = class_heatmaps(
        uss,
        init,
        keys,
        levels=levels if settings.features == "both" else (),
        valid=valid,
        mode=settings.heatmap,
        temperature=settings.temperature,
        pooling=settings.pooling,
    )
    heat, separate = maps, None
    groups = correlation_groups(centroids, present=active, tau=settings.tau, mode=settings.grouping)
    if settings.final_transport and settings.final_order == "before":
        heat = _transport_all(heat, init, keys, active, valid, settings)
    if settings.wss:
        separate = supervised_heatmaps(
            levels, init, keys, groups=groups, grid=grid, valid=valid, pooling=settings.pooling
        )
        rivals = active if settings.group_cost == "all" else None
        heat = heat * group_weights(
            separate, groups, active=rivals, valid=valid_grid, epsilon=settings.epsilon, stopping=settings.stopping
        )
    if settings.final_transport and settings.final_order == "after":
        heat = _transport_all(heat, init, keys, active, valid, settings)
    scaled = not settings.final_transport or settings.final_marginal == "uniform"
    if settings.heatmap == "min_max" and scaled:
        heat = min_max_normalize(heat, valid=valid_grid, present=active)
    result = replace(merged, active=active, groups=groups, uss_heatmaps=maps, wss_heatmaps=separate, heatmaps=heat)
    return replace(result, mask=_label(heat, active, merged, image, keys, foreground, valid, settings, refine))


def _transport_all(
    heat: Tensor, init: Tensor, keys: Tensor, active: Tensor, valid: Tensor | None, settings: RebalanceSettings
) -> Tensor:
    """Weigh heatmaps `(B, K, h, w)` by a transport over all classes of each image."""
    grid = (heat.shape[2], heat.shape[3])
    area = None
    if settings.final_marginal != "uniform":
        area = cell_labels(init, keys, grid=grid, valid=valid, mode="area").sum(2)  # (B, K)
    return heat * final_weights(
        heat,
        active,
        marginal=settings.final_marginal,
        area=area,
        valid=None if valid is None else valid_cells(valid, grid),
        epsilon=settings.epsilon,
        stopping=settings.stopping,
    )


def _label(
    heat: Tensor,
    active: Tensor,
    merged: RebalanceResult,
    image: Tensor,
    keys: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    settings: RebalanceSettings,
    refine: Refine | None,
) -> Tensor:
    """Resize and refine heatmaps, take the best class of every pixel, and restore classes that were removed."""
    valid_grid = None if valid is None else valid_cells(valid, (heat.shape[2], heat.shape[3]))
    score = resize_maps(heat, (image.shape[1], image.shape[2]), valid=valid_grid)  # (B, K, H, W)
    before = mask = labels_from_scores(score, keys, present=active)
    if refine is not None and settings.refine_final:
        mask = labels_from_scores(refine(image, score, active, valid=valid), keys, present=active)
        for name, source in (("heatmap", before), ("seed", merged.seed)):
            if settings.guard in (name, "both"):
                mask, _ = merge_seed(
                    mask, source, keys, foreground, min_pixels=settings.min_pixels, min_share=settings.min_share
                )
    mask = _keep_pixels(mask, merged.init, keys, active, settings.preserve_ignore)
    return mask if valid is None else mask.masked_fill(~valid, IGNORE)


def _keep_pixels(mask: Tensor, init: Tensor, keys: Tensor, active: Tensor, preserve_ignore: bool) -> Tensor:
    """Keep pixels of classes without a centroid and, if asked, ignored pixels."""
    without = torch.cat([~active, torch.full_like(active[:, :1], preserve_ignore)], dim=1)  # (B, K + 1)
    keep = without.gather(1, index_classes(init, keys).flatten(1)).view_as(init)
    return torch.where(keep, init, mask)
