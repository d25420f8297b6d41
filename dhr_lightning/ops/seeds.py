"""Seeds from transported CAMs, and their merge into an initial mask."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_choice, check_range, check_shape
from dhr_lightning.ops.cam import background_score, index_classes, labels_from_scores
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.refine import Refine
from dhr_lightning.ops.resize import resize_maps
from dhr_lightning.ops.thresholds import exponent_of, foreground_histogram, otsu_threshold
from dhr_lightning.ops.transport.plan import Stopping, TransportBackend, TransportOptions, transport_weights

SeedMode = Literal["vanished", "all", "none"]


class MergedMask(NamedTuple):
    """Initial mask `init` `(B, H, W)` and the classes `recovered` `(B, K)` whose seeds were pasted."""

    init: Tensor
    recovered: Tensor


def transport_seed(
    image: Tensor,
    cam: Tensor,
    classes: ImageClasses,
    *,
    transport: bool = True,
    epsilon: float = 0.1,
    gamma: float | Literal["auto"] = 2.0,
    background: bool = True,
    stopping: Stopping = "absolute",
    backend: TransportBackend = "torch",
    refine: Refine | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Seed mask of the tagged classes.

    Args:
        image: `(B, 3, H, W)` uint8 RGB.
        cam: `(B, K, h, w)` normalised maps in [0, 1].
        classes: K classes of each image; those of the foreground have seeds.
        transport: weight the maps by their transport plan.
        epsilon: entropy weight of the plan.
        gamma: exponent of the background score `(1 - max)^gamma`, > 0 (γ); `"auto"` lets background and classes meet
            at Otsu's threshold of the weighted maps of each image.
        background: let that score take part in the refinement; without it, a pixel is background where the refined
            classes all stay below one half, which one or two classes never do.
        stopping: see `transport_weights`.
        backend: see `transport_weights`.
        refine: refinement over the background and the tagged classes.
        ignore_index: value where the background wins, which means "keep the initial mask".

    Returns:
        `(B, H, W)` int64 of tagged class values and `ignore_index`.

    Source: M_seed of DHR (arXiv:2404.00380), f_OT(A) ⊙ A.
    Differs: a background competes (`background=False` refines the classes alone as the published code does, which
        erases the mask's background); maps are resized bilinearly, not by nearest neighbour.
    """
    foreground, valid = classes.foreground, classes.valid
    valid_grid, size = classes.valid_cells((cam.shape[2], cam.shape[3])), (image.shape[2], image.shape[3])
    cam = cam.float().masked_fill(~foreground[..., None, None], 0.0)
    if valid_grid is not None:
        cam = cam * valid_grid[:, None]
    if transport:
        cells = None if valid_grid is None else valid_grid.flatten(1)
        options = TransportOptions(epsilon=epsilon, stopping=stopping, backend=backend)
        weights = transport_weights(cam.flatten(2), valid=cells, present=foreground, **options)
        cam = cam * weights.view_as(cam)
    exponent = _auto_exponent(cam, valid_grid) if gamma == "auto" else gamma
    cam = resize_maps(cam, size, valid=valid_grid)  # (B, K, H, W)
    exists = torch.cat([torch.ones_like(foreground[:, :1]), foreground], dim=1)
    if background:
        score = torch.cat([background_score(cam, exponent=exponent), cam], dim=1)  # (B, 1 + K, H, W)
        score = score if refine is None else refine(image, score, exists, valid=valid)
    else:
        cam = cam if refine is None else refine(image, cam, foreground, valid=valid)
        score = torch.cat([background_score(cam, exponent=1.0), cam], dim=1)
    seed_keys = torch.cat([torch.full_like(classes.keys[:, :1], ignore_index), classes.keys], dim=1)
    seed = labels_from_scores(score, seed_keys, present=exists, ignore_index=ignore_index)
    return seed if valid is None else seed.masked_fill(~valid, ignore_index)


def _auto_exponent(cam: Tensor, valid: Tensor | None) -> Tensor:
    """Exponent `(B,)` at which the background of each image gives way at Otsu's threshold."""
    return exponent_of(otsu_threshold(foreground_histogram(cam, valid=valid)))


def merge_seed(
    mask: Tensor,
    seed: Tensor,
    classes: ImageClasses,
    *,
    mode: SeedMode = "vanished",
    min_pixels: int = 16,
    min_share: float = 0.2,
    ignore_index: int = 255,
) -> MergedMask:
    """Paste seeds into a mask.

    Args:
        mask: `(B, H, W)` int64 class values; values of no class of the image become `ignore_index`.
        seed: `(B, H, W)` int64 of tagged class values and `ignore_index`.
        classes: K classes of each image; seeds of its foreground are pasted.
        mode: `"vanished"` pastes the seed of a class that covers less than `max(min_pixels, min_share * seed area)`
            pixels of the mask, also when another seed made it so; `"all"` pastes every seed; `"none"` pastes nothing.
        min_pixels: smallest area of a class that has not vanished, >= 0.
        min_share: the same as a share of the class's seed, in [0, 1].
        ignore_index: value of undecided pixels.

    Returns:
        The merged mask, and the classes whose seed was pasted. In mode `"vanished"` every class with a seed keeps at
        least that area or its whole seed.

    Source: M_init of DHR (arXiv:2404.00380): seeds replace pixels where a class has vanished.
    Differs: the published code lets every seed overwrite the mask.
    """
    check_choice("mode", mode, ("vanished", "all", "none"))
    check_shape("seed", seed, mask.shape, "B H W")
    check_range("min_pixels", min_pixels, 0, float("inf"))
    check_range("min_share", min_share, 0.0, 1.0)
    keys, count = classes.keys, classes.keys.shape[1]
    in_mask, in_seed = index_classes(mask, keys), index_classes(seed, keys)  # (B, H, W) in [0, K]
    clean = torch.where(in_mask < count, mask, ignore_index)
    overlap = _overlap(in_mask, in_seed, count)  # (B, K + 1, K + 1)
    seed_area = overlap[:, :, :-1].sum(1)  # (B, K)
    seeded = classes.foreground & (seed_area > 0)
    if mode == "vanished":
        least = (seed_area.float() * min_share).clamp_min(min_pixels)
        recovered = _vanished(overlap, seeded, least)
    else:
        recovered = seeded if mode == "all" else torch.zeros_like(seeded)
    pasted = torch.cat([recovered, torch.zeros_like(recovered[:, :1])], dim=1)  # (B, K + 1)
    paste = pasted.gather(1, in_seed.flatten(1)).view_as(mask)
    return MergedMask(torch.where(paste, seed, clean), recovered)


def _overlap(in_mask: Tensor, in_seed: Tensor, classes: int) -> Tensor:
    """Pixels per class of the mask (rows) and of the seed (columns), `(B, K + 1, K + 1)`; K means no class."""
    side = classes + 1
    image = torch.arange(len(in_mask), device=in_mask.device)[:, None, None]
    cell = (image * side + in_mask) * side + in_seed
    return torch.bincount(cell.flatten(), minlength=len(in_mask) * side * side).view(-1, side, side)


def _vanished(overlap: Tensor, seeded: Tensor, least: Tensor) -> Tensor:
    """Classes `(B, K)` that keep less than `least` pixels once the seeds of all vanished classes are pasted."""
    area = overlap[:, :-1].float()  # (B, K, K + 1)
    recovered = torch.zeros_like(seeded)
    for _ in range(seeded.shape[1]):  # each pass may uncover one more class at least
        lost = torch.cat([recovered, torch.zeros_like(recovered[:, :1])], dim=1)
        left = (area * ~lost[:, None]).sum(2)
        recovered = recovered | (seeded & (left < least))
    return recovered
