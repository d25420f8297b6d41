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
# Published order and constants; without a refinement, which would cost the same on both sides.
SETTINGS = RebalanceSettings(
    seed="all", heatmap="min_max", grouping="row_upper", final_transport=True, final_order="after", guard="none"
)


def plain_mask_step(
    mask: Tensor, cam: Tensor, uss: Tensor, levels: Sequence[Tensor], tags: list[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """Redraw the mask of one image of a set with a background.

    Args:
        mask: `(H, W)` int64 class values among 0, the tags and 255.
        cam: `(n, h, w)` normalised maps of the tags in [0, 1].
        uss: `(D, h, w)` unsupervised features.
        levels: `(D, h, w)` supervised features per level.
        tags: class values of the image, ascending.

    Returns:
        New mask `(H, W)`, heatmaps `(n, h, w)` and their class values.
    """
    size = (int(mask.shape[0]), int(mask.shape[1]))
    init = paste_seeds(mask, cam, tags, size)
    labels = init.numpy()
    centroids = pool_classes(uss, labels)
    classes = sorted(centroids)
    stacked = torch.stack([centroids[c] for c in classes])
    heat = cosine_maps(uss, stacked)
    alike = torch.triu(stacked @ stacked.T)
    groups = [(row > SETTINGS.tau).nonzero()[:, 0].tolist() for row in alike]
    groups = [group for group in groups if len(group) > 1]
    if groups:
        separate = supervised_maps(levels, labels, classes, heat.shape[1:])
        for group in groups:
            heat[group] = heat[group] * transport_weights(separate[group])
    heat = min_max(heat * transport_weights(heat))
    best = resize(heat, size).argmax(0)
    return torch.tensor(classes)[best], heat, classes


def paste_seeds(mask: Tensor, cam: Tensor, tags: list[int], size: tuple[int, int]) -> Tensor:
    """Overwrite a mask where transported maps beat their background."""
    maps = resize(cam * transport_weights(cam), size)
    background = (1 - maps.amax(0, keepdim=True)) ** SETTINGS.gamma
    seed = torch.tensor([IGNORE, *tags])[torch.cat([background, maps]).argmax(0)]
    return torch.where(seed == IGNORE, mask, seed)


def supervised_maps(levels: Sequence[Tensor], labels: np.ndarray, classes: list[int], grid: Sequence[int]) -> Tensor:
    """Mean heatmap of the levels on one grid."""
    maps = []
    for level in levels:
        centroids = pool_classes(level, labels)
        maps.append(resize(cosine_maps(level, torch.stack([centroids[c] for c in classes])), grid))
    return min_max(torch.stack(maps).mean(0))


def transport_weights(maps: Tensor) -> Tensor:
    """Scale a kernel until the published stop, then take min-max per class; one class is left alone."""
    if len(maps) == 1:
        return torch.ones_like(maps)
    similarity = maps.flatten(1).T  # (N, n)
    kernel = torch.exp((similarity - 1) / SETTINGS.epsilon)
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


def pool_classes(features: Tensor, labels: np.ndarray) -> dict[int, Tensor]:
    """Mean feature of the cells where a class has most pixels, or of all its cells by area if it has none."""
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
        if value in members:
            found[value] = torch.stack(members[value]).mean(0)
        else:
            found[value] = sum(share * feature for share, feature in parts)
    return {value: functional.normalize(found[value], dim=0) for value in found if value != IGNORE}


def cosine_maps(features: Tensor, centroids: Tensor) -> Tensor:
    """Min-max scaled cosine of every cell to every centroid, `(n, h, w)`."""
    return min_max(functional.cosine_similarity(features[None], centroids[:, :, None, None], dim=1))


def min_max(maps: Tensor) -> Tensor:
    """Scale every map to [0, 1]."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps `(n, h, w)` bilinearly."""
    return functional.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
