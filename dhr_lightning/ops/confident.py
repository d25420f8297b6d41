"""Base masks that label only what is confidently foreground or background."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_dims, check_shape
from dhr_lightning.ops.cam import background_score, cam_labels, index_classes, labels_from_scores
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.refine import Refine

LABEL_CRF = CRFSettings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=50, bilateral_srgb=5, bilateral_compat=10)

SCORE_CRF = CRFSettings(gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10)


@dataclass(frozen=True)
class ConfidentThresholds:
    """Background scores of the two argmaxes and trust in their labels; the defaults are IRNet's.

    Attributes:
        foreground: activation that a confident object exceeds, in (0, 1).
        background: activation that a confident background stays below, in (0, `foreground`].
        trust: probability of the label that goes into the dense CRF, in (0, 1).
    """

    foreground: float = 0.30
    background: float = 0.05
    trust: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.background <= self.foreground < 1:
            raise ValueError(
                f"Expected 0 < background <= foreground < 1, but got {self.background} and {self.foreground}."
            )
        if not 0 < self.trust < 1:
            raise ValueError(f"Expected `trust` in (0, 1), but got {self.trust}.")


def label_probability(index: Tensor, present: Tensor, *, trust: float = 0.7) -> Tensor:
    """Turn hard labels into class probabilities for the dense CRF.

    Args:
        index: `(B, H, W)` int64, position in [0, K) of the label among the classes of its image.
        present: `(B, K)` bool, classes that exist.
        trust: probability of the given label, in (0, 1).

    Returns:
        `(B, K, H, W)` float32: `trust` for the label, an equal part of the rest for the other present classes, 0 for
        absent ones; 1 where an image has one class only.

    Source: `unary_from_labels` of pydensecrf with `zero_unsure=False`, whose energies are minus the logarithm.
    """
    check_dims("index", index, "B H W")
    check_dims("present", present, "B K")
    others = (present.sum(1) - 1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
    rest = (1 - trust) / others.clamp_min(1)
    own = torch.where(others > 0, trust, 1.0)
    given = torch.arange(present.shape[1], device=index.device)[:, None, None] == index[:, None]  # (B, K, H, W)
    return torch.where(given, own, rest) * present[..., None, None]


def confident_labels(
    image: Tensor,
    cam: Tensor,
    classes: ImageClasses,
    *,
    thresholds: ConfidentThresholds,
    refine: Refine,
    ignore_index: int = 255,
) -> Tensor:
    """Label pixels that a strict threshold calls object, or that even a permissive one calls background.

    Each threshold gives labels by the argmax of `[threshold, CAM]`, refined from these hard labels.

    Args:
        image: `(B, 3, H, W)` uint8 RGB.
        cam: `(B, K, H, W)` normalised maps in [0, 1] of the foreground classes.
        classes: K foreground classes of each image; class value 0 is the background.
        thresholds: of the two labellings.
        refine: dense CRF with the kernels `LABEL_CRF`, or another refinement.
        ignore_index: value of unsure pixels and of padding.

    Returns:
        `(B, H, W)` int64: foreground class values, 0 or `ignore_index`.

    Raises:
        ValueError: if a shape does not fit.

    Source: `cam_to_ir_label` of IRNet (arXiv:1904.05044).
    """
    check_dims("cam", cam, "B K H W")
    check_shape("keys", classes.keys, cam.shape[:2], "B K")
    every = classes.with_background()

    def labels(threshold: float) -> Tensor:
        index = index_classes(cam_labels(cam, classes, threshold=threshold), every.keys)
        probability = label_probability(index, every.present, trust=thresholds.trust)
        return labels_from_scores(refine(image, probability, every.present, valid=every.valid), every.keys)

    objects, permissive = labels(thresholds.foreground), labels(thresholds.background)
    sure = (objects > 0) | (permissive == 0)
    sure = sure if every.valid is None else sure & every.valid
    return torch.where(sure, objects, ignore_index)


def confident_powers(
    image: Tensor,
    cam: Tensor,
    classes: ImageClasses,
    *,
    powers: tuple[float, float],
    refine: Refine,
    ignore_index: int = 255,
) -> Tensor:
    """Label pixels that a strong background score leaves to an object, or that even a weak one keeps as background.

    Each exponent gives labels by the argmax of the refined `[(1 - max CAM)^exponent, CAM]`.

    Args:
        image: `(B, 3, H, W)` uint8 RGB.
        cam: `(B, K, H, W)` normalised maps in [0, 1] of the foreground classes.
        classes: K foreground classes of each image; class value 0 is the background.
        powers: exponents of the strong and of the weak background score: PSA has 4 and 32.
        refine: see `ops.refine.Refiner`.
        ignore_index: value of unsure pixels and of padding.

    Returns:
        `(B, H, W)` int64 class values.

    Source: labels of AffinityNet, PSA (arXiv:1803.10464) and its code.
    Differs: at image size; the code pools the scores to stride 8 first.
    """
    every = classes.with_background()

    def labels(exponent: float) -> Tensor:
        score = torch.cat([background_score(cam, exponent=exponent), cam], dim=1) * every.present[..., None, None]
        score = score / score.sum(1, keepdim=True).clamp_min(1e-5)
        refined = refine(image, score, every.present, valid=every.valid)
        return labels_from_scores(refined, every.keys, present=every.present)

    objects, permissive = labels(powers[0]), labels(powers[1])
    found = torch.where(objects == 0, ignore_index, objects)
    found = torch.where(permissive == 0, 0, found)
    return found if every.valid is None else torch.where(every.valid, found, ignore_index)
