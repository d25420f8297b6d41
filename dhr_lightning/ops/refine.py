"""One interface to the edge-aware refinements, chosen by name."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_choice, check_dims, check_positive, check_range, check_shape
from dhr_lightning.ops.crf.dense import BACKENDS, CRFSettings, check_pydensecrf, check_scores, dense_crf, has_pydensecrf
from dhr_lightning.ops.crf.lattice import LatticeCache
from dhr_lightning.ops.pixel_adaptive import PAMR_DILATIONS, pamr
from dhr_lightning.ops.resize import resize_maps

Backend = Literal["auto", "lattice", "pydensecrf", "pamr", "none"]
Resolved = Literal["lattice", "pydensecrf", "pamr", "none"]


class Refine(Protocol):
    """What operations ask of a refinement; a `Refiner` is one."""

    def __call__(self, image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Turn scores `(B, K, H, W)` of images `(B, 3, H, W)` into probabilities of the same shape."""


@dataclass(frozen=True)
class Refiner:
    """Refine class scores along the edges of the image.

    Attributes:
        backend: `"lattice"` (dense CRF, batched, on the device), `"pydensecrf"` (the same on the processor, image by
            image, in `workers` processes), `"pamr"` (another, local method; batched, on the device), `"none"` (only
            normalises), or `"auto"`: pydensecrf for tensors on the processor where it is installed, else lattice.
        settings: kernels of the dense CRF.
        dilations: neighbour distances of PAMR in pixels.
        pamr_iterations: iterations of PAMR.
        sigma: colour tolerance of PAMR.
        workers: processes of pydensecrf; 0 and 1 run in this process.
        scale: work at this fraction of the image size, in (0, 1]; kernel widths stay as they are.
        cache: keeps lattices and shrunken or turned images of the last batch. Give two refiners the same one and they
            build the lattice of an image once, if their bilateral widths and scales are equal. `cache.clear()` frees
            it.

    Raises:
        ValueError: if a setting is out of range.
        DependencyError: if pydensecrf is asked for and not installed.
    """

    backend: Backend = "auto"
    settings: CRFSettings = field(default_factory=CRFSettings)
    dilations: tuple[int, ...] = PAMR_DILATIONS
    pamr_iterations: int = 10
    sigma: float = 0.1
    workers: int = 0
    scale: float = 1.0
    cache: LatticeCache = field(default_factory=LatticeCache, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, get_args(Backend))
        check_positive("scale", self.scale)
        check_range("scale", self.scale, 0.0, 1.0)
        check_positive("pamr_iterations", self.pamr_iterations)
        check_positive("sigma", self.sigma)
        check_range("workers", self.workers, 0, 4096)
        if self.backend == "pydensecrf":  # now, rather than at the first image after a fit
            check_pydensecrf("backend")

    def resolve(self, device: torch.device) -> Resolved:
        """The backend that runs for tensors on `device`."""
        return resolve_backend(self.backend, device)

    def describe(self, device: torch.device) -> str:
        """What runs on `device` in words, such as `dense CRF by pydensecrf, 2 processes`."""
        backend = self.resolve(device)
        if backend == "pydensecrf":
            return f"dense CRF by pydensecrf, {max(1, self.workers)} process{'es' if self.workers > 1 else ''}"
        names = {"lattice": f"dense CRF by lattice on {device}", "pamr": f"PAMR on {device}", "none": "none"}
        return names[backend]

    def __call__(self, image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """Refine the present classes of a batch.

        Args:
            image: `(B, 3, H, W)` uint8 RGB.
            score: `(B, K, H, W)` >= 0, higher is more likely; need not sum to 1.
            present: `(B, K)` bool, classes that exist.
            valid: `(B, H, W)` bool; its bounding box is treated as the whole image.

        Returns:
            `(B, K, H, W)` float that sums to 1 over the present classes inside the valid box; absent classes are 0.

        Raises:
            ValueError: if a shape, type or device does not fit, or the score of a present class is NaN or infinite.
        """
        check_dims("score", score, "B K H W")
        check_shape("image", image, (len(score), 3, *score.shape[-2:]), "B 3 H W")
        check_shape("present", present, score.shape[:2], "B K")
        size = (score.shape[2], score.shape[3])
        present = present.bool()
        check_scores("score", score, present)
        score = as_float(score).masked_fill(~present[..., None, None], 0.0)  # absent classes may hold NaN
        if self.backend == "none" or self.scale == 1.0:
            return self._refine(image, score, present, valid)
        small = (max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale)))
        # the small image must be the same tensor in the next call, or its lattice would not be found again
        small_image, small_valid = self.cache.get(
            (image, valid), ("shrunk", small), lambda: _shrink(image, valid, small)
        )
        result = self._refine(small_image, resize_maps(score, small, valid=valid), present, small_valid)
        return resize_maps(result, size, valid=small_valid)

    def _refine(self, image: Tensor, score: Tensor, present: Tensor, valid: Tensor | None) -> Tensor:
        """Run the backend at the size of `score`."""
        backend = self.resolve(score.device)
        if backend in BACKENDS:
            # like the small image, the turned one must be the same tensor in the next call
            turned = self.cache.get((image,), "channels last", lambda: _turn(image))
            return dense_crf(
                turned,
                score,
                backend=backend,
                settings=self.settings,
                present=present,
                valid=valid,
                workers=self.workers,
                cache=self.cache,
            )
        probability = normalize_scores(score, present)
        if backend == "none":
            return probability
        return pamr(
            image.float() / 255.0,
            probability,
            dilations=self.dilations,
            iterations=self.pamr_iterations,
            sigma=self.sigma,
            valid=valid,
        )


def resolve_backend(backend: Backend, device: torch.device) -> Resolved:
    """The refinement that a setting means for tensors on a device.

    `auto` is pydensecrf only on the processor, and only where it is installed: on an accelerator the batched lattice is
    faster than processes that the tensors would have to be copied to.
    """
    if backend != "auto":
        return backend
    return "pydensecrf" if device.type == "cpu" and has_pydensecrf() else "lattice"


def normalize_scores(score: Tensor, present: Tensor) -> Tensor:
    """Divide scores `(B, K, H, W)` by their sum over the present classes; equal shares where all are 0."""
    exists = present[..., None, None].to(score.dtype)
    score = score.clamp_min(0.0) * exists
    total = score.sum(1, keepdim=True)
    even = exists / exists.sum(1, keepdim=True).clamp_min(1.0)
    return torch.where(total > 0, score / total.clamp_min(torch.finfo(score.dtype).tiny), even)


def _shrink(image: Tensor, valid: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    return _shrink_image(image, size), None if valid is None else _shrink_valid(valid, size)


def _shrink_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Average `(B, 3, H, W)` uint8 pixels into a smaller image."""
    return functional.interpolate(image.float(), size, mode="area").round().to(torch.uint8)


def _turn(image: Tensor) -> Tensor:
    """Copy `(B, 3, H, W)` into `(B, H, W, 3)`, as the dense CRF takes images; a view would keep the image alive."""
    return image.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)


def _shrink_valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep a small pixel if most of it was valid."""
    share = functional.interpolate(valid.float()[:, None], size, mode="area")[:, 0]
    return share >= torch.minimum(share.flatten(1).amax(1), share.new_tensor(0.5))[:, None, None]
