"""Removal of biased objects: compare every cell with class centroids that lie far from the background."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_dims, check_positive, check_range, check_shape, full_precision
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.kmeans import batched_spherical_kmeans
from dhr_lightning.ops.pooling import cell_labels, cells_first, cosine_heatmaps
from dhr_lightning.ops.refine import Refine
from dhr_lightning.ops.resize import resize_maps, valid_cells

_NO_BACKGROUND = "MARS needs a background class, but {}. Skip the MARS stage for this class set."


def image_centroids(
    uss: Tensor,
    mask: Tensor,
    classes: ImageClasses,
    *,
    k_fg: int = 2,
    k_bg: int = 2,
    iterations: int = 20,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Split the features of every class of an image into a few centroids.

    Args:
        uss: `(B, D, h, w)` unsupervised features on their own grid, finite.
        mask: `(B, H, W)` int class values at pixel size; values of no class of the image are left out.
        classes: K classes of each image, the background among them; only valid pixels count.
        k_fg: centroids per foreground class (target and biased object), >= 1.
        k_bg: centroids of the background, >= 1.
        iterations: iterations of spherical k-means.
        seed: start of the k-means.

    Returns:
        Unit centroids `(B, K, k, D)` with k = max(k_fg, k_bg), 0 where unused, and `(B, K, k)` bool. Pairs
        `centroids[used]` and `classes.keys[..., None].expand_as(used)[used]` feed `debiased_centroids`.

    Raises:
        ValueError: if the class set has no background, or an argument does not fit.

    Source: MARS (arXiv:2304.09913), K-means per image and class.
    Differs: spherical, at the resolution of the features; the paper does not say.
    """
    check_dims("uss", uss, "B D h w")
    check_positive("k_fg", k_fg)
    check_positive("k_bg", k_bg)
    if classes.offset == 0:
        raise ValueError(_NO_BACKGROUND.format("`offset` is 0"))
    grid = (uss.shape[2], uss.shape[3])
    member = cell_labels(mask, classes, grid=grid) > 0  # (B, K, N)
    limit = torch.where(classes.keys == 0, k_bg, k_fg)
    rows = cells_first(uss)
    return batched_spherical_kmeans(rows, member, max(k_fg, k_bg), iterations=iterations, seed=seed, limit=limit)


def centroid_sizes(uss: Tensor, mask: Tensor, classes: ImageClasses, centroids: Tensor, used: Tensor) -> Tensor:
    """Count the cells of every centroid of `image_centroids`.

    Args:
        uss: `(B, D, h, w)` the features that were clustered.
        mask: `(B, H, W)` int class values.
        classes: K classes of each image; only valid pixels count.
        centroids: `(B, K, k, D)` unit centroids.
        used: `(B, K, k)` bool.

    Returns:
        `(B, K, k)` float, number of cells of the class whose nearest centroid it is; 0 where unused.
    """
    member = cell_labels(mask, classes, grid=(uss.shape[2], uss.shape[3])) > 0  # (B, K, N)
    with full_precision(uss):
        cosine = torch.einsum("bnd,bpkd->bpkn", functional.normalize(as_float(cells_first(uss)), dim=2), centroids)
        nearest = cosine.masked_fill(~used[..., None], -2.0).argmax(2)  # (B, K, N)
        counted = functional.one_hot(nearest, used.shape[2]) * member[..., None]  # (B, K, N, k)
    return counted.sum(2).to(centroids.dtype) * used


def debiased_centroids(
    centroids: Tensor, classes: Tensor, *, num_classes: int, alpha: float = 0.4, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average, per class, the centroids of the whole data set that lie farthest from the background.

    Args:
        centroids: `(M, D)` centroids of all images, any scale.
        classes: `(M,)` int class values in [0, num_classes), 0 = background.
        num_classes: C, background included.
        alpha: share of a class's centroids that is kept, in (0, 1] (α in the paper).
        sizes: `(M,)` cells of each centroid. Given them, `alpha` is a share of the class's cells and the average is
            weighted by cells: then a small part that is always far from the background, such as a stripe or a window,
            cannot stand for the whole class.

    Returns:
        Unit vectors `(C, D)` float and `(C,)` bool that tells which classes were found; the background never is.

    Raises:
        ValueError: if there is no background centroid, a class value is out of range, or `alpha` is not in (0, 1].

    Source: MARS (arXiv:2304.09913), debiased centroids; distance (1 - cosine) / 2, averaged over the background.
    Differs: the mean distance to all background centroids equals the distance to their mean, which costs O(M).
    `sizes` is ours.
    """
    check_dims("centroids", centroids, "M D")
    check_shape("classes", classes, centroids.shape[:1], "M")
    check_positive("alpha", alpha)
    check_range("alpha", alpha, 0.0, 1.0)
    classes = classes.long()
    if not bool((classes == 0).any()):
        raise ValueError(_NO_BACKGROUND.format(f"none of the {len(classes)} centroids has class 0"))
    check_range("classes", int(classes.min()), 0, num_classes - 1)
    check_range("classes", int(classes.max()), 0, num_classes - 1)
    with full_precision(centroids):
        unit = functional.normalize(as_float(centroids), dim=1)
        distance = 0.5 * (1.0 - unit @ unit[classes == 0].mean(0))  # (M,)
        order = distance.argsort(descending=True, stable=True)
        order = order[classes[order].argsort(stable=True)]  # by class, farthest first
        weight = (torch.ones_like(distance) if sizes is None else sizes)[order]
        kept = weight * _farthest(weight, classes[order], num_classes=num_classes, alpha=alpha)
        sums = unit.new_zeros(num_classes, unit.shape[1]).index_add(0, classes[order], kept[:, None] * unit[order])
        sums[0] = 0.0
        found = sums.any(1)
        return functional.normalize(sums, dim=1), found


def _farthest(weight: Tensor, classes: Tensor, *, num_classes: int, alpha: float) -> Tensor:
    """Mark the first entries of each class that make up the share `alpha` of its weight, as 0 or 1.

    `weight` and `classes` are `(M,)`, sorted by class. On the CPU, because not every device has float64.
    """
    exact, where = weight.cpu().double(), classes.cpu()
    totals = exact.new_zeros(num_classes).index_add(0, where, exact)  # (C,)
    before = exact.cumsum(0) - exact - (totals.cumsum(0) - totals)[where]
    limit = totals[where] * alpha - 1e-6  # 0.07 * 100 is a little above 7 in floating point
    return (before < limit).to(weight)


def foreground_similarity(uss: Tensor, debiased: Tensor, keys: Tensor) -> Tensor:
    """Similarity of every cell to the nearest debiased centroid of the image's classes.

    Args:
        uss: `(B, D, h, w)` features, any scale.
        debiased: `(C, D)` unit vectors of `debiased_centroids`; zero rows never win.
        keys: `(B, K)` class values, 0 = background (skipped), -1 = padding.

    Returns:
        `(B, h, w)` float in [0, 1]. It does not tell classes apart, because unsupervised features do not either.

    Source: MARS (arXiv:2304.09913), ReLU of the largest cosine.
    """
    check_dims("debiased", debiased, "C D")
    chosen = debiased[keys.clamp_min(0)] * (keys > 0)[..., None]  # (B, K, D)
    return cosine_heatmaps(uss, chosen).amax(1).relu()


def foreground_mask(
    image: Tensor,
    similarity: Tensor,
    *,
    threshold: float = 0.5,
    refine: Refine | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Decide which pixels are foreground.

    Args:
        image: `(B, 3, H, W)` uint8 RGB.
        similarity: `(B, h, w)` in [0, 1].
        threshold: similarity that is as much foreground as background, in (0, 1).
        refine: refinement over (background, foreground); none if omitted.
        valid: `(B, H, W)` bool, pixels inside the image.

    Returns:
        `(B, H, W)` bool: the refined foreground score is larger than its complement.

    Source: MARS (arXiv:2304.09913), M = R(similarity), R unspecified.
    Differs: R is a two-label refinement of [1 - s, s], where s is the similarity, stretched in two straight pieces so
    that `threshold` becomes 1/2; at the default of 1/2 it is the similarity itself.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"Expected `threshold` in (0, 1), but got {threshold}.")
    check_dims("similarity", similarity, "B h w")
    grid, size = (similarity.shape[1], similarity.shape[2]), (image.shape[2], image.shape[3])
    valid_grid = None if valid is None else valid_cells(valid, grid)
    foreground = _stretch(resize_maps(similarity[:, None], size, valid=valid_grid), threshold)  # (B, 1, H, W)
    score = torch.cat([1.0 - foreground, foreground], dim=1)  # (B, 2, H, W)
    if refine is not None:
        score = refine(image, score, torch.ones_like(score[..., 0, 0], dtype=torch.bool), valid=valid)
    return score[:, 1] > score[:, 0]


def _stretch(similarity: Tensor, threshold: float) -> Tensor:
    """Map [0, threshold] to [0, 1/2] and [threshold, 1] to [1/2, 1]."""
    above = 0.5 + 0.5 * (similarity - threshold) / (1.0 - threshold)
    return torch.where(similarity < threshold, 0.5 * similarity / threshold, above)


def reject_biased(mask: Tensor, foreground: Tensor, *, value: int, ignore_index: int = 255) -> Tensor:
    """Replace foreground pixels that do not look like their class.

    Args:
        mask: `(B, H, W)` int class values, 0 = background.
        foreground: `(B, H, W)` bool of `foreground_mask`.
        value: value of rejected pixels, for instance 254; 0 turns them into background.
        ignore_index: pixels of this value are left as they are.

    Returns:
        Mask of the same type; background and ignored pixels are unchanged.

    Source: MARS (arXiv:2304.09913), debiased label Y^db.
    """
    check_shape("foreground", foreground, mask.shape, "B H W")
    return mask.masked_fill((mask > 0) & (mask != ignore_index) & ~foreground, value)
