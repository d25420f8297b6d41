"""Dense conditional random field over the classes present in an image."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops._checks import check_choice, check_dims, check_positive, check_range, check_shape
from dhr_lightning.ops._crf_pool import run_jobs
from dhr_lightning.ops._crf_worker import CRFJob, CRFParameters

_Box = tuple[slice, slice]


@dataclass(frozen=True)
class CRFSettings:
    """Kernels of the dense CRF; the defaults are those of RS+EPM and DHR.

    Attributes:
        gaussian_sxy: reach of the smoothness kernel in pixels, > 0.
        gaussian_compat: its weight, >= 0; 0 drops the kernel.
        bilateral_sxy: reach of the colour kernel in pixels, > 0.
        bilateral_srgb: its tolerance in colour levels (0-255), > 0.
        bilateral_compat: its weight, >= 0; 0 drops the kernel.
        iterations: mean-field rounds, >= 1.
    """

    gaussian_sxy: float = 1.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 67.0
    bilateral_srgb: float = 3.0
    bilateral_compat: float = 4.0
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb", "iterations"):
            check_positive(name, getattr(self, name))
        for name in ("gaussian_compat", "bilateral_compat"):
            check_range(name, getattr(self, name), 0.0, float("inf"))


@cache
def has_pydensecrf() -> bool:
    """Tell whether pydensecrf is installed, without importing it."""
    return find_spec("pydensecrf") is not None


def dense_crf(
    image: Tensor,
    probability: Tensor,
    *,
    backend: str = "pydensecrf",
    settings: CRFSettings | None = None,
    present: Tensor | None = None,
    valid: Tensor | None = None,
    workers: int = 0,
) -> Tensor:
    """Refine class probabilities along the edges of an image.

    Args:
        image: `(H, W, 3)` or `(B, H, W, 3)` uint8 RGB.
        probability: `(C, H, W)` or `(B, C, H, W)` scores >= 0; clipped to [1e-5, 1] and need not sum to 1.
        backend: `"pydensecrf"`.
        settings: kernels; default `CRFSettings()`.
        present: `(B, C)` or `(C,)` bool, classes to run; default all. Time grows with their number.
        valid: `(B, H, W)` or `(H, W)` bool; only its bounding box is refined and the rest becomes 0.
        workers: processes; 0 and 1 run in this process.

    Returns:
        Float32 of the shape and device of `probability`; sums to 1 over the present classes, absent classes are 0.

    Raises:
        ValueError: if a shape, type or option does not fit, or a score is NaN or infinite.
        DependencyError: if pydensecrf is not installed.

    Source: Krähenbühl & Koltun, NIPS 2011.
    """
    check_choice("backend", backend, ("pydensecrf",))
    single = probability.ndim == 3
    if single:
        image, probability = image[None], probability[None]
        present = None if present is None else present[None]
        valid = None if valid is None else valid[None]
    present = _check_input(image, probability, present, valid)
    if not has_pydensecrf():
        raise DependencyError(
            "The dense CRF needs pydensecrf, which is not installed. "
            "Run `pip install 'dhr-lightning[crf]'` or set `refine: pamr`."
        )
    refined = _run(image, probability.detach(), present, valid, settings or CRFSettings(), workers)
    return refined[0] if single else refined


def _check_input(image: Tensor, probability: Tensor, present: Tensor | None, valid: Tensor | None) -> Tensor:
    """Check shapes, types and values; returns the present classes `(B, C)`."""
    check_dims("probability", probability, "B C H W")
    batch, classes, height, width = probability.shape
    check_shape("image", image, (batch, height, width, 3), "B H W 3")
    if image.dtype != torch.uint8:
        raise ValueError(f"Expected `image` of type uint8 with levels 0-255, but got {image.dtype}.")
    if present is None:
        present = torch.ones(batch, classes, dtype=torch.bool)
    check_shape("present", present, (batch, classes), "B C")
    if valid is not None:
        check_shape("valid", valid, (batch, height, width), "B H W")
    finite = probability.isfinite().flatten(2).all(2) | ~present.to(probability.device)  # (B, C)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(f"Expected finite `probability`, but image {row}, class {column} holds NaN or infinity.")
    return present


def _run(
    image: Tensor,
    probability: Tensor,
    present: Tensor,
    valid: Tensor | None,
    settings: CRFSettings,
    workers: int,
) -> Tensor:
    """Cut every image to its classes and valid box, refine, and put the results back."""
    pixels, scores = image.cpu().numpy(), probability.float().cpu().numpy()
    exists = present.cpu().numpy()
    boxes = _valid_boxes(valid, probability)
    # pydensecrf works on one image at a time, so there is a job per image
    jobs = {b: _cut(pixels[b], scores[b, exists[b]], box) for b, box in boxes.items() if exists[b].any()}
    results = run_jobs(list(jobs.values()), CRFParameters(**vars(settings)), workers=workers)
    refined = np.zeros_like(scores)
    for b, marginals in zip(jobs, results, strict=True):
        rows, columns = boxes[b]
        refined[b, exists[b], rows, columns] = marginals
    return torch.from_numpy(refined).to(probability.device)


def _cut(pixels: NDArray[np.uint8], scores: NDArray[np.float32], box: _Box) -> CRFJob:
    """Cut one image and its classes to a box."""
    rows, columns = box
    return CRFJob(pixels[rows, columns], scores[:, rows, columns])


def _valid_boxes(valid: Tensor | None, probability: Tensor) -> dict[int, _Box]:
    """Bounding box of the valid pixels of every image that has some."""
    batch, _, height, width = probability.shape
    if valid is None:
        return dict.fromkeys(range(batch), (slice(0, height), slice(0, width)))
    boxes: dict[int, _Box] = {}
    for b, inside in enumerate(valid.cpu().numpy()):
        y, x = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if len(y):
            boxes[b] = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
    return boxes
