"""Masks from a segmenter at test time: scales, flip, and an optional dense CRF."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.methods.memory import in_pieces, within_memory
from dhr_lightning.models.segmenter import multi_scale_probability
from dhr_lightning.ops.crf.dense import BACKENDS, CRFSettings
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ops.tiles import predict_tiles
from dhr_lightning.protocol import EvaluationProtocol

log = logging.getLogger("dhr_lightning")
_BACKENDS = ("auto", *BACKENDS)


class Inference:
    """The test-time protocol of a task: settings once, masks of any number of batches."""

    def __init__(
        self,
        scales: tuple[float, ...],
        *,
        flip: bool = True,
        test_crf: Mapping[str, Any] | None = None,
        ignore_index: int = 255,
    ) -> None:
        """Check the settings.

        Args:
            scales: relative image sizes, all > 0.
            flip: add the mirror of every scale.
            test_crf: None for no CRF; else what differs from the defaults of `CRFSettings`, and `backend` (`auto`,
                `lattice` or `pydensecrf`), `workers` (processes of pydensecrf), `prune` (default 0.05).
            ignore_index: recorded in the protocol.

        Raises:
            ConfigError: if a key of `test_crf` is unknown or a setting is out of range.
            DependencyError: if the backend is not installed.
        """
        options = dict(test_crf or {})
        backend, workers = options.pop("backend", "auto"), options.pop("workers", 0)
        prune = options.pop("prune", EvaluationProtocol.prune)
        unknown = sorted(set(options) - set(asdict(CRFSettings())))
        if unknown or backend not in _BACKENDS:
            known = ", ".join(("backend", "workers", "prune", *asdict(CRFSettings())))
            raise ConfigError(
                f"Unknown key {unknown[0]!r} in test_crf. Known: {known}."
                if unknown
                else f"Expected test_crf.backend to be one of {', '.join(_BACKENDS)}, but got {backend!r}."
            )
        self.tiled: list[str] = []  # images that came in tiles because memory ran out
        self.refiner: Refiner | None = None
        if test_crf is not None:
            self.refiner = Refiner(backend, CRFSettings(**options), workers=workers)
        self.settings = EvaluationProtocol(
            scales=tuple(scales),
            flip=flip,
            crf=None if self.refiner is None else asdict(self.refiner.settings),
            backend=None if self.refiner is None else backend,
            prune=prune,
            ignore_index=ignore_index,
        )

    def protocol(self, split: str, device: torch.device) -> EvaluationProtocol:
        """What the masks of a split are made with on a device: training images may use their tags."""
        backend = None if self.refiner is None else self.refiner.resolve(device)
        return replace(self.settings, tags=split == "train", backend=backend)

    def __call__(self, network: nn.Module, batch: Batch, *, allowed: Tensor | None = None) -> Tensor:
        """Masks of whole images.

        Args:
            network: a `Segmenter`.
            batch: needs `image`, and for the CRF `pixels` and `valid`.
            allowed: `(B, C)` bool, classes that may appear; default all.

        Returns:
            `(B, H, W)` int64 class values; padding holds any value.
        """
        pieces = in_pieces(lambda one: self._probability(network, one), batch)
        return self.masks(torch.cat([found for _, found in pieces]), batch, allowed=allowed)

    def _probability(self, network: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities; those of one image that does not fit into memory come in tiles, once."""

        def whole(image: Tensor) -> Tensor:
            return multi_scale_probability(network, image, scales=self.settings.scales, flip=self.settings.flip)

        image = batch["image"]
        if len(image) > 1:
            return whole(image)
        probability = within_memory(whole, image)
        return self._of_tiles(whole, image, batch["id"][0]) if probability is None else probability

    def _of_tiles(self, whole: Callable[[Tensor], Tensor], image: Tensor, name: str) -> Tensor:
        """Probabilities of one image `(1, 3, H, W)` from tiles of half its sides."""
        height, width = image.shape[-2:]
        side = half_tile(height, width)
        log.warning("%s: out of memory at %d x %d pixels, predicted in tiles of %d", name, height, width, side)
        self.tiled.append(name)

        def tile(rows: slice, columns: slice) -> Tensor:
            return whole(image[..., rows, columns])[0]

        bands = predict_tiles((height, width), tile, side=side, overlap=side // 4)
        return torch.cat([band.clone() for _, band in bands], dim=1)[None].to(image.device)

    def masks(self, probability: Tensor, batch: Batch, *, allowed: Tensor | None = None) -> Tensor:
        """Masks from class probabilities that are already there.

        Args:
            probability: `(B, C, H, W)` in [0, 1].
            batch: needs `pixels` and `valid` for the CRF.
            allowed: as for `__call__`.

        Raises:
            DataError: names the first image for which the network gives no numbers.
        """
        return self.scores(probability, batch, allowed=allowed).argmax(1)

    def scores(self, probability: Tensor, batch: Batch, *, allowed: Tensor | None = None) -> Tensor:
        """What `masks` takes the largest of: probabilities `(B, C, H, W)`, refined if that is set."""
        check_finite_outputs(probability, batch)
        if allowed is not None:
            probability = probability * allowed[:, :, None, None]
        if self.refiner is None:
            return probability
        present = strong_classes(probability, batch["valid"], prune=self.settings.prune)
        return self.refiner(batch["pixels"], probability, present, valid=batch["valid"])


def half_tile(height: int, width: int) -> int:
    """Side of tiles in pixels, a multiple of 32, with half the sides of an image, 64 at least."""
    return max(64, max(height, width) // 64 * 32)


def check_finite_outputs(outputs: Tensor, batch: Batch) -> None:
    """Refuse outputs `(B, ...)` that are not finite: their argmax would be background everywhere.

    Raises:
        DataError: names the first image.
    """
    finite = torch.isfinite(outputs).flatten(1).all(1)
    if not bool(finite.all()):
        name = next(name for name, fine in zip(batch["id"], finite.tolist(), strict=True) if not fine)
        raise DataError(
            f"The network gives values that are not finite for image {name!r}, though its weights are finite. "
            "Predict with --trainer.precision 32-true; if that does not help, look at the image."
        )


def strong_classes(probability: Tensor, valid: Tensor, *, prune: float) -> Tensor:
    """Classes worth a CRF label: those that exceed `prune` somewhere in the image.

    Args:
        probability: `(B, C, H, W)` in [0, 1].
        valid: `(B, H, W)` bool, False in padding.
        prune: in [0, 1).

    Returns:
        `(B, C)` bool, at least one per image.

    Source: inference published with DHR (arXiv:2404.00380).
    Differs: the strongest class always stays; there an image whose classes are all weak has none, which is an error.
    """
    peak = torch.where(valid[:, None], probability, 0.0).flatten(2).amax(2)  # (B, C)
    return (peak > prune) | F.one_hot(peak.argmax(1), peak.shape[1]).bool()
