"""Dual features-driven hierarchical rebalancing: seeds, unsupervised and supervised features, final mask."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dhr_lightning.ops._checks import full_precision
from dhr_lightning.ops.cam import index_classes, labels_from_scores, min_max_normalize
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.correlation import correlation_groups
from dhr_lightning.ops.heatmaps import class_heatmaps, final_weights, group_weights, supervised_heatmaps
from dhr_lightning.ops.pooling import cell_labels
from dhr_lightning.ops.profiles import RebalanceSettings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs, check_inputs
from dhr_lightning.ops.refine import Refine
from dhr_lightning.ops.resize import resize_maps
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
    inputs: RebalanceInputs,
    *,
    settings: RebalanceSettings | None = None,
    refine_seed: Refine | None = None,
    refine_final: Refine | None = None,
) -> RebalanceResult:
    """Recover vanished classes and redraw masks from image features.

    Args:
        inputs: images, initial masks, CAMs and features of a batch, see `RebalanceInputs`.
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
    check_inputs(inputs, settings)
    with full_precision(inputs.cam):
        valid = inputs.classes.valid
        mask = inputs.mask.long() if valid is None else inputs.mask.long().masked_fill(~valid, IGNORE)
        seed = torch.full_like(mask, IGNORE)
        if settings.seed != "none":
            seed = _make_seed(inputs, settings, refine_seed)
        init, recovered = merge_seed(
            mask,
            seed,
            inputs.classes,
            mode=settings.seed,
            min_pixels=settings.min_pixels,
            min_share=settings.min_share,
        )
        merged = RebalanceResult(init, seed, init, recovered)
        if not settings.uss or inputs.uss is None:
            return merged
        result = _redraw(merged, inputs, inputs.uss, settings)
        return replace(result, mask=_label(result, inputs, settings, refine_final))


def _make_seed(inputs: RebalanceInputs, settings: RebalanceSettings, refine: Refine | None) -> Tensor:
    return transport_seed(
        inputs.image,
        inputs.cam,
        inputs.classes,
        transport=settings.seed_transport,
        gamma=settings.gamma,
        background=settings.seed_background,
        refine=refine if settings.refine_seed else None,
        **settings.transport_options,
    )


def _redraw(
    merged: RebalanceResult, inputs: RebalanceInputs, uss: Tensor, settings: RebalanceSettings
) -> RebalanceResult:
    """Add the rebalanced heatmaps, from which the labels come."""
    grid, init, classes = (uss.shape[2], uss.shape[3]), merged.init, inputs.classes
    levels = {"all": inputs.wss, "first": inputs.wss[:1], "last": inputs.wss[-1:]}[settings.wss_levels]
    valid_grid = classes.valid_cells(grid)
    maps, centroids, active = class_heatmaps(
        uss,
        init,
        classes,
        levels=levels if settings.features == "both" else (),
        mode=settings.heatmap,
        temperature=settings.temperature,
        pooling=settings.pooling,
    )
    heat, separate = maps, None
    groups = correlation_groups(centroids, present=active, tau=settings.tau, mode=settings.grouping)
    if settings.final_transport and settings.final_order == "before":
        heat = _transport_all(heat, init, classes, active, settings)
    if settings.wss:
        separate = supervised_heatmaps(levels, init, classes, groups=groups, grid=grid, pooling=settings.pooling)
        rivals = active if settings.group_cost == "all" else None
        heat = heat * group_weights(separate, groups, active=rivals, valid=valid_grid, **settings.transport_options)
    if settings.final_transport and settings.final_order == "after":
        heat = _transport_all(heat, init, classes, active, settings)
    scaled = not settings.final_transport or settings.final_marginal == "uniform"
    if settings.heatmap == "min_max" and scaled:
        heat = min_max_normalize(heat, valid=valid_grid, present=active)
    return replace(merged, active=active, groups=groups, uss_heatmaps=maps, wss_heatmaps=separate, heatmaps=heat)


def _transport_all(
    heat: Tensor, init: Tensor, classes: ImageClasses, active: Tensor, settings: RebalanceSettings
) -> Tensor:
    """Weigh heatmaps `(B, K, h, w)` by a transport over all classes of each image."""
    grid = (heat.shape[2], heat.shape[3])
    area = None
    if settings.final_marginal != "uniform":
        area = cell_labels(init, classes, grid=grid, mode="area").sum(2)  # (B, K)
    return heat * final_weights(
        heat,
        active,
        marginal=settings.final_marginal,
        area=area,
        valid=classes.valid_cells(grid),
        **settings.transport_options,
    )


def _label(
    result: RebalanceResult, inputs: RebalanceInputs, settings: RebalanceSettings, refine: Refine | None
) -> Tensor:
    """Resize and refine heatmaps, take the best class of every pixel, and restore classes that were removed."""
    heat, active, image, classes = result.heatmaps, result.active, inputs.image, inputs.classes
    assert heat is not None
    assert active is not None
    valid_grid = classes.valid_cells((heat.shape[2], heat.shape[3]))
    score = resize_maps(heat, (image.shape[2], image.shape[3]), valid=valid_grid)  # (B, K, H, W)
    before = mask = labels_from_scores(score, classes.keys, present=active)
    if refine is not None and settings.refine_final:
        refined = refine(image, score, active, valid=classes.valid)
        mask = labels_from_scores(refined, classes.keys, present=active)
        for name, source in (("heatmap", before), ("seed", result.seed)):
            if settings.guard in (name, "both"):
                mask, _ = merge_seed(
                    mask, source, classes, min_pixels=settings.min_pixels, min_share=settings.min_share
                )
    mask = _keep_pixels(mask, result.init, classes.keys, active, settings.preserve_ignore)
    return mask if classes.valid is None else mask.masked_fill(~classes.valid, IGNORE)


def _keep_pixels(mask: Tensor, init: Tensor, keys: Tensor, active: Tensor, preserve_ignore: bool) -> Tensor:
    """Keep pixels of classes without a centroid and, if asked, ignored pixels."""
    without = torch.cat([~active, torch.full_like(active[:, :1], preserve_ignore)], dim=1)  # (B, K + 1)
    keep = without.gather(1, index_classes(init, keys).flatten(1)).view_as(init)
    return torch.where(keep, init, mask)
