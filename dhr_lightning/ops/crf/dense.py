"""Dense conditional random field over the classes present in an image."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops._checks import check_choice, check_dims, check_positive, check_range, check_shape
from dhr_lightning.ops.crf.lattice import LatticeCache
from dhr_lightning.ops.crf.mean_field import Box, mean_field
from dhr_lightning.ops.crf.pool import run_jobs
from dhr_lightning.ops.crf.worker import CRFJob, CRFParameters

BACKENDS = ("lattice", "pydensecrf")


@dataclass(frozen=True)
class CRFSettings:
    """Kernels of the dense CRF; the defaults are those of RS+EPM and DHR.

    Attributes:
        gaussian_sxy: reach of the smoothness kernel in pixels, > 0.
        gaussian_compat: its weight, >= 0; 0 drops the kernel.
        bilateral_sxy: reach of the colour kernel in pixels, > 0.
        bilateral_srgb: its tolerance in colour levels (0-255), > 0.
        bilateral_compat: its weight, >= 0; 0 drops the kernel.
        iterations: mean-field iterations, >= 1.
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


def check_pydensecrf(option: str) -> None:
    """Refuse the backend where pydensecrf is absent.

    Args:
        option: name of the option that asks for it.

    Raises:
        DependencyError: if pydensecrf is not installed.
    """
    if not has_pydensecrf():
        raise DependencyError(
            f"pydensecrf is not installed, but `{option}` is 'pydensecrf'. "
            "Run `pip install 'dhr-lightning[crf]'` or use 'lattice'."
        )


def dense_crf(
    image: Tensor,
    probability: Tensor,
    *,
    backend: str = "lattice",
    settings: CRFSettings | None = None,
    present: Tensor | None = None,
    valid: Tensor | None = None,
    workers: int = 0,
    cache: LatticeCache | None = None,
) -> Tensor:
    """Refine class probabilities along the edges of an image.

    Args:
        image: `(H, W, 3)` or `(B, H, W, 3)` uint8 RGB.
        probability: `(C, H, W)` or `(B, C, H, W)` scores; clipped to [1e-5, 1] and need not sum to 1.
        backend: `"lattice"` (tensor operations on the device of the input) or `"pydensecrf"` (on the processor); they
            agree up to rounding.
        settings: kernels; default `CRFSettings()`.
        present: `(B, C)` or `(C,)` bool, classes to run; default all. Time grows with their number.
        valid: `(B, H, W)` or `(H, W)` bool; only its bounding box is refined and the rest becomes 0.
        workers: processes of pydensecrf; 0 and 1 run in this process.
        cache: keeps the lattices, so that the next call with the very same `image` and `valid` does not build them.

    Returns:
        Float32 of the shape and device of `probability`; sums to 1 over the present classes, absent classes are 0.

    Raises:
        ValueError: if a shape, type, device or option does not fit, a score is NaN or infinite, or a kernel is so
            narrow that the vertices of its lattice cannot be numbered.
        DependencyError: if pydensecrf is asked for and not installed.

    Source: Krähenbühl & Koltun, NIPS 2011; filters of Adams, Baek & Davis 2010.
    """
    check_choice("backend", backend, BACKENDS)
    check_range("workers", workers, 0, 4096)
    single = probability.ndim == 3
    # an added axis makes a new tensor, which no cache would know: a single image keeps its own
    source = (image, valid)
    if single:
        image, probability = image[None], probability[None]
        present = None if present is None else present[None]
        valid = None if valid is None else valid[None]
    present = _check_input(image, probability, present, valid)
    boxes = _valid_boxes(valid, probability)
    settings = settings or CRFSettings()
    if backend == "pydensecrf":
        refined = _run_pydensecrf(image, probability.detach(), present, boxes, settings, workers)
    else:
        parameters = CRFParameters(**vars(settings))
        lattices = (LatticeCache() if cache is None else cache, source)
        refined = mean_field(image, probability.detach(), present, boxes, parameters, lattices)
    return refined[0] if single else refined


def check_scores(name: str, scores: Tensor, present: Tensor) -> None:
    """Raise `ValueError` unless the scores `(B, C, H, W)` of all present classes `(B, C)` are finite."""
    finite = scores.isfinite().flatten(2).all(2) | ~present  # (B, C)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(f"Expected finite `{name}`, but image {row}, class {column} holds NaN or infinity.")


def _check_input(image: Tensor, probability: Tensor, present: Tensor | None, valid: Tensor | None) -> Tensor:
    """Check shapes, types, devices and values; returns the present classes `(B, C)`."""
    check_dims("probability", probability, "B C H W")
    batch, classes, height, width = probability.shape
    if not (classes and height and width and probability.is_floating_point()):
        raise ValueError(
            "Expected float `probability` of shape (B, C, H, W) with C, H and W >= 1, "
            f"but got {probability.dtype} of shape {tuple(probability.shape)}."
        )
    check_shape("image", image, (batch, height, width, 3), "B H W 3")
    if image.dtype != torch.uint8:
        raise ValueError(f"Expected `image` of type uint8 with levels 0-255, but got {image.dtype}.")
    if present is None:
        present = torch.ones(batch, classes, dtype=torch.bool, device=probability.device)
    check_shape("present", present, (batch, classes), "B C")
    if valid is not None:
        check_shape("valid", valid, (batch, height, width), "B H W")
    for name, tensor in (("image", image), ("present", present), ("valid", valid)):
        if tensor is not None and tensor.device != probability.device:
            raise ValueError(f"Expected `{name}` on {probability.device} like `probability`, but got {tensor.device}.")
    present = present.bool()
    check_scores("probability", probability, present)
    return present


def _run_pydensecrf(
    image: Tensor,
    probability: Tensor,
    present: Tensor,
    boxes: list[Box],
    settings: CRFSettings,
    workers: int,
) -> Tensor:
    """Cut every image to its classes and valid box, refine, and put the results back."""
    check_pydensecrf("backend")
    pixels, scores = image.cpu().numpy(), probability.float().cpu().numpy()
    exists = present.cpu().numpy()
    # pydensecrf works on one image at a time, so there is a job per image
    cuts = {
        b: (slice(top, bottom), slice(left, right))
        for b, (top, left, bottom, right) in enumerate(boxes)
        if bottom > top and exists[b].any()
    }
    jobs = [CRFJob(pixels[b, y, x], scores[b, exists[b], y, x]) for b, (y, x) in cuts.items()]
    results = run_jobs(jobs, CRFParameters(**vars(settings)), workers=workers)
    refined = np.zeros_like(scores)
    for (b, (y, x)), marginals in zip(cuts.items(), results, strict=True):
        refined[b, exists[b], y, x] = marginals
    return torch.from_numpy(refined).to(probability.device)


def _valid_boxes(valid: Tensor | None, probability: Tensor) -> list[Box]:
    """Top, left, bottom and right of the valid pixels of every image; all 0 where there are none."""
    batch, _, height, width = probability.shape
    if valid is None:
        return [(0, 0, height, width)] * batch
    rows, columns = valid.bool().any(2).byte(), valid.bool().any(1).byte()  # (B, H), (B, W)
    starts = torch.stack([rows.argmax(1), columns.argmax(1)], 1)  # of equal values the first one
    ends = torch.stack([height - rows.flip(1).argmax(1), width - columns.flip(1).argmax(1)], 1)
    boxes = torch.cat([starts, ends], 1) * rows.any(1, keepdim=True)  # (B, 4)
    return [(top, left, bottom, right) for top, left, bottom, right in boxes.tolist()]
