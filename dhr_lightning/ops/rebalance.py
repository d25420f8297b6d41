"""Dual features-driven hierarchical rebalancing: seeds, unsupervised and supervised features, final mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_choice, check_dims, check_positive, check_range, check_shape, full_precision
from dhr_lightning.ops.cam import index_classes, labels_from_scores, min_max_normalize
from dhr_lightning.ops.correlation import correlation_groups
from dhr_lightning.ops.heatmaps import HeatmapMode, class_heatmaps, final_weights, group_weights, supervised_heatmaps
from dhr_lightning.ops.pooling import cell_labels
from dhr_lightning.ops.refine import Refine
from dhr_lightning.ops.resize import resize_maps, valid_cells
from dhr_lightning.ops.seeds import SeedMode, merge_seed, transport_seed
from dhr_lightning.ops.transport import Stopping

IGNORE = 255


@dataclass(frozen=True)
class RebalanceSettings:
    """Switches and constants of DHR; the defaults repair the published code, see each function's `Differs:`.

    Attributes:
        epsilon: entropy weight of every transport, > 0 (λ in the paper).
        stopping: `"absolute"` as in the published code, or `"marginal"` to converge.
        tau: cosine above which two classes form a group, in [0, 1] (τ).
        gamma: exponent of the background score of the seeds, > 0 (γ).
        seed_transport: weight the CAMs by their transport plan.
        seed: paste seeds of `"vanished"` classes, of `"all"`, or of `"none"`.
        refine_seed: refine the seeds, if a refinement is given.
        min_pixels: a class below this area in the mask has vanished.
        min_share: the same as a share of the class's seed, in [0, 1].
        uss: replace the mask by heatmaps of the unsupervised features; otherwise the merged mask is the result.
        wss: separate alike classes by the supervised features (needs `uss`).
        grouping: `"components"`, or `"row_upper"` as in the published code.
        heatmap: `"min_max"` of the cosine per class, or `"softmax"` over the classes.
        temperature: of the softmax, > 0.
        final_transport: apply a last transport over all classes; off, because uniform shares inflate small classes
            where a background covers most of the image.
        final_marginal: class shares of the last transport: `"uniform"` with min-max weights as in the published code,
            or the `"area"` in the merged mask with posterior weights.
        refine_final: refine the final heatmaps, if a refinement is given.
        preserve_ignore: keep 255 of the merged mask, which heatmaps otherwise relabel.
    """

    epsilon: float = 0.1
    stopping: Stopping = "absolute"
    tau: float = 0.8
    gamma: float = 2.0
    seed_transport: bool = True
    seed: SeedMode = "vanished"
    refine_seed: bool = True
    min_pixels: int = 16
    min_share: float = 0.2
    uss: bool = True
    wss: bool = True
    grouping: Literal["components", "row_upper"] = "components"
    heatmap: HeatmapMode = "min_max"
    temperature: float = 0.1
    final_transport: bool = False
    final_marginal: Literal["uniform", "area"] = "uniform"
    refine_final: bool = True
    preserve_ignore: bool = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "gamma", "temperature"):
            check_positive(name, getattr(self, name))
        check_range("tau", self.tau, 0.0, 1.0)
        check_range("min_share", self.min_share, 0.0, 1.0)
        check_range("min_pixels", self.min_pixels, 0, float("inf"))
        check_choice("stopping", self.stopping, ("absolute", "marginal"))
        check_choice("seed", self.seed, ("vanished", "all", "none"))
        check_choice("grouping", self.grouping, ("components", "row_upper"))
        check_choice("heatmap", self.heatmap, ("min_max", "softmax"))
        check_choice("final_marginal", self.final_marginal, ("uniform", "area"))


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
        ValueError: if a shape or value does not fit, or `settings` asks for features that were not given.

    Source: DHR (arXiv:2404.00380), in the order of its code.
    Differs: seeds compete with a background, aligned grids, area fallback of the pooling, tags filter the classes.
    """
    settings = settings or RebalanceSettings()
    _check_input(image, mask, cam, uss, wss, keys, present, offset, valid, settings)
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
        return _redraw(merged, image, uss, wss, keys, valid, settings, refine_final)


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
        stopping=settings.stopping,
        refine=refine if settings.refine_seed else None,
    )


def _redraw(
    merged: RebalanceResult,
    image: Tensor,
    uss: Tensor,
    wss: Sequence[Tensor],
    keys: Tensor,
    valid: Tensor | None,
    settings: RebalanceSettings,
    refine: Refine | None,
) -> RebalanceResult:
    """Replace the merged mask by labels from rebalanced heatmaps."""
    grid = (uss.shape[2], uss.shape[3])
    near = None if valid is None else valid_cells(valid, grid)
    init = merged.init
    maps, centroids, active = class_heatmaps(
        uss, init, keys, valid=valid, mode=settings.heatmap, temperature=settings.temperature
    )
    heat, separate = maps, None
    groups = correlation_groups(centroids, present=active, tau=settings.tau, mode=settings.grouping)
    if settings.wss:
        separate = supervised_heatmaps(wss, init, keys, groups=groups, grid=grid, valid=valid)
        heat = heat * group_weights(separate, groups, valid=near, epsilon=settings.epsilon, stopping=settings.stopping)
    by_area = settings.final_transport and settings.final_marginal == "area"
    if settings.final_transport:
        shares = cell_labels(init, keys, grid=grid, valid=valid, mode="area").sum(2) if by_area else None
        heat = heat * final_weights(
            heat, active, shares=shares, valid=near, epsilon=settings.epsilon, stopping=settings.stopping
        )
    if settings.heatmap == "min_max" and not by_area:
        heat = min_max_normalize(heat, valid=near, present=active)
    result = replace(merged, active=active, groups=groups, uss_heatmaps=maps, wss_heatmaps=separate, heatmaps=heat)
    return replace(result, mask=_label(heat, image, init, keys, active, valid, settings, refine))


def _label(
    heat: Tensor,
    image: Tensor,
    init: Tensor,
    keys: Tensor,
    active: Tensor,
    valid: Tensor | None,
    settings: RebalanceSettings,
    refine: Refine | None,
) -> Tensor:
    """Resize and refine heatmaps, and take the best class of every pixel."""
    near = None if valid is None else valid_cells(valid, (heat.shape[2], heat.shape[3]))
    score = resize_maps(heat, (image.shape[1], image.shape[2]), valid=near)  # (B, K, H, W)
    if refine is not None and settings.refine_final:
        score = refine(image, score, active, valid=valid)
    mask = labels_from_scores(score, keys, present=active)
    mask = _keep_pixels(mask, init, keys, active, settings.preserve_ignore)
    return mask if valid is None else mask.masked_fill(~valid, IGNORE)


def _keep_pixels(mask: Tensor, init: Tensor, keys: Tensor, active: Tensor, preserve_ignore: bool) -> Tensor:
    """Keep pixels of classes without a centroid and, if asked, ignored pixels."""
    without = torch.cat([~active, torch.full_like(active[:, :1], preserve_ignore)], dim=1)  # (B, K + 1)
    keep = without.gather(1, index_classes(init, keys).flatten(1)).view_as(init)
    return torch.where(keep, init, mask)


def _check_input(
    image: Tensor,
    mask: Tensor,
    cam: Tensor,
    uss: Tensor | None,
    wss: Sequence[Tensor],
    keys: Tensor,
    present: Tensor,
    offset: int,
    valid: Tensor | None,
    settings: RebalanceSettings,
) -> None:
    """Check the arguments of `rebalance` before any work is done."""
    check_dims("mask", mask, "B H W")
    batch, height, width = mask.shape
    check_range("offset", offset, 0, 1)
    check_shape("image", image, (batch, height, width, 3), "B H W 3")
    check_dims("keys", keys, "B K")
    check_shape("present", present, (batch, keys.shape[1]), "B K")
    check_dims("cam", cam, "B K h w")
    check_shape("cam", cam, (batch, keys.shape[1], *cam.shape[2:]), "B K h w")
    if valid is not None:
        check_shape("valid", valid, (batch, height, width), "B H W")
    low, high = (int(value) for value in mask.aminmax())
    if low < 0 or high > IGNORE:
        raise ValueError(f"Expected `mask` values in [0, {IGNORE}], but got {low} to {high}.")
    if not settings.uss:
        return
    if uss is None or (settings.wss and not wss):
        name, switch = ("uss", "uss") if uss is None else ("wss", "wss")
        raise ValueError(f"Expected features in `{name}`, but got none. Pass them or set `{switch}=False`.")
    for name, level in (("uss", uss), *((f"wss[{i}]", level) for i, level in enumerate(wss))):
        check_dims(name, level, "B D h w")
        check_shape(name, level, (batch, *level.shape[1:]), "B D h w")
