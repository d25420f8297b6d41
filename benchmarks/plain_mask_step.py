"""The mask step as the published code writes it: image by image, a loop over cells, one solver call per problem.

What it computes is the package's definition (exact windows, area fallback, maps resized instead of features), so that
results can be compared.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops.profiles import RebalanceSettings

IGNORE = 255


def plain_mask_step(
    mask: Tensor, cam: Tensor, uss: Tensor, levels: Sequence[Tensor], tags: list[int], settings: RebalanceSettings
) -> tuple[Tensor, Tensor, list[int]]:
    """Redraw the mask of one image of a set with a background, by the profile `reference` or `default`.

    Args:
        mask: `(H, W)` int64 class values among 0, the tags and 255.
        cam: `(n, h, w)` normalised maps of the tags in [0, 1].
        uss: `(D, h, w)` unsupervised features.
        levels: `(D, h, w)` supervised features per level.
        tags: class values of the image, ascending.
        settings: one of the two profiles; refinements, which would cost the same on both sides, are left out.

    Returns:
        New mask `(H, W)`, heatmaps `(n, h, w)` and their class values.
    """
    size = (int(mask.shape[0]), int(mask.shape[1]))
    init = paste_seeds(mask, cam, tags, size, settings)
    labels = init.numpy()
    centroids = pool_classes(uss, labels, settings.pooling)
    classes = sorted(centroids)
    stacked = torch.stack([centroids[c] for c in classes])
    cosine = cosine_maps(uss, stacked)
    groups = alike_classes(stacked, settings)
    both = settings.features == "both"
    separate = level_maps(levels, labels, classes, settings.pooling) if both or groups else []
    if both:
        cosine = (cosine + sum(resize(level, cosine.shape[1:]) for level in separate)) / (1 + len(separate))
    heat = min_max(cosine) if settings.heatmap == "min_max" else (cosine / settings.temperature).softmax(0)
    if groups:
        apart = min_max(torch.stack([resize(min_max(level), heat.shape[1:]) for level in separate]).mean(0))
        for group in groups:
            heat[group] = heat[group] * transport_weights(apart[group], settings.epsilon)
    if settings.final_transport:
        heat = min_max(heat * transport_weights(heat, settings.epsilon))
    best = resize(heat, size).argmax(0)
    return torch.tensor(classes)[best], heat, classes


def paste_seeds(
    mask: Tensor, cam: Tensor, tags: list[int], size: tuple[int, int], settings: RebalanceSettings
) -> Tensor:
    """Overwrite a mask where transported maps beat their background: all classes, or those that the mask has lost."""
    maps = resize(cam * transport_weights(cam, settings.epsilon), size)
    background = (1 - maps.amax(0, keepdim=True)) ** settings.gamma
    seed = torch.tensor([IGNORE, *tags])[torch.cat([background, maps]).argmax(0)]
    if settings.seed == "all":
        return _paste(mask, seed, set(tags))
    pasted: set[int] = set()
    while lost := {tag for tag in tags if _has_vanished(_paste(mask, seed, pasted), seed, tag, settings)} - pasted:
        pasted |= lost
    return _paste(mask, seed, pasted)


def _paste(mask: Tensor, seed: Tensor, classes: set[int]) -> Tensor:
    return torch.where(torch.isin(seed, torch.tensor(sorted(classes), dtype=torch.long)), seed, mask)


def _has_vanished(mask: Tensor, seed: Tensor, tag: int, settings: RebalanceSettings) -> bool:
    area, wanted = int((mask == tag).sum()), int((seed == tag).sum())
    return wanted > 0 and area < max(settings.min_pixels, settings.min_share * wanted)


def alike_classes(centroids: Tensor, settings: RebalanceSettings) -> list[list[int]]:
    """Groups of alike classes: every row of the upper triangle, or the connected components."""
    alike = centroids @ centroids.T > settings.tau
    alike.fill_diagonal_(True)
    if settings.grouping == "row_upper":
        groups = [row.nonzero()[:, 0].tolist() for row in torch.triu(alike)]
        return [group for group in groups if len(group) > 1]
    groups, rest = [], set(range(len(alike)))
    while rest:
        group: set[int] = set()
        found = {min(rest)}
        while found:
            group |= found
            found = {j for i in found for j in alike[i].nonzero()[:, 0].tolist()} - group
        groups.append(sorted(group))
        rest -= group
    return [group for group in groups if len(group) > 1]


def level_maps(levels: Sequence[Tensor], labels: np.ndarray, classes: list[int], pooling: str) -> list[Tensor]:
    """Cosine maps of every level on its own grid."""
    maps = []
    for level in levels:
        centroids = pool_classes(level, labels, pooling)
        maps.append(cosine_maps(level, torch.stack([centroids[c] for c in classes])))
    return maps


def transport_weights(maps: Tensor, epsilon: float) -> Tensor:
    """Scale a kernel until the published stop, then take min-max per class; one class is left alone."""
    if len(maps) == 1:
        return torch.ones_like(maps)
    similarity = maps.flatten(1).T  # (N, n)
    kernel = torch.exp((similarity - 1) / epsilon)
    pixels, classes = kernel.shape
    r, c = kernel.new_ones(pixels), kernel.new_ones(classes)
    for _ in range(100):
        previous = r
        r = (1 / pixels) / (kernel @ c)
        c = (1 / classes) / (kernel.T @ r)
        if (r - previous).abs().mean().item() < 1e-2:
            break
    plan = r[:, None] * kernel * c
    return min_max(plan.T.reshape(maps.shape))


def pool_classes(features: Tensor, labels: np.ndarray, pooling: str) -> dict[int, Tensor]:
    """Mean feature of the cells where a class has most pixels, or (also if it has none) of all its cells by area."""
    height, width = labels.shape
    _, h, w = features.shape
    members: dict[int, list[Tensor]] = {}
    areas: dict[int, list[tuple[float, Tensor]]] = {}
    for y in range(h):
        rows = labels[y * height // h : -(-(y + 1) * height // h)]
        for x in range(w):
            window = rows[:, x * width // w : -(-(x + 1) * width // w)]
            values, counts = np.unique(window, return_counts=True)
            members.setdefault(int(values[counts.argmax()]), []).append(features[:, y, x])
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                areas.setdefault(value, []).append((count / window.size, features[:, y, x]))
    found = {}
    for value, parts in areas.items():
        if value in members and pooling == "majority":
            found[value] = torch.stack(members[value]).mean(0)
        else:
            found[value] = sum(share * feature for share, feature in parts)
    return {value: functional.normalize(found[value], dim=0) for value in found if value != IGNORE}


def cosine_maps(features: Tensor, centroids: Tensor) -> Tensor:
    """Cosine of every cell to every centroid, `(n, h, w)`."""
    return functional.cosine_similarity(features[None], centroids[:, :, None, None], dim=1)


def min_max(maps: Tensor) -> Tensor:
    """Scale every map to [0, 1]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps `(n, h, w)` bilinearly."""
    return functional.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
