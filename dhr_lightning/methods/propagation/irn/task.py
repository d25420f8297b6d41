"""Train boundaries on confident labels of CAMs; predict masks by a walk that they stop."""

import logging
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.propagation.affinity import AffinityTask
from dhr_lightning.methods.propagation.irn.network import STRIDE, BoundaryNetwork
from dhr_lightning.methods.propagation.irn.spec import SPEC
from dhr_lightning.ops.affinity import path_affinity
from dhr_lightning.ops.cam import background_score
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.confident import LABEL_CRF, ConfidentThresholds, confident_labels
from dhr_lightning.ops.resize import valid_cells
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold

BACKGROUND_IMAGES = 64
log = logging.getLogger("dhr_lightning")


class IRNTask(AffinityTask):
    """Boundaries of IRNet and their random walk.

    Args:
        output_stride: of the encoder, 8 or 16.
        dilation: see `models.backbones.build_encoder`.
        foreground: activation that a confident object exceeds, in (0, 1).
        certain_background: activation that a confident background stays below, in (0, `foreground`].
        background: constant score of the background after the walk, whose maps are divided by their maximum, in (0, 1);
            or `auto`: Otsu's threshold of the walked maps of some training images, chosen once before prediction; or
            `walk`: `1 - max_k M_k` walks with the maps, which then stay as they are: for maps that are probabilities,
            such as those of a learnt background.
        **options: see `AffinityTask`; the paper's, which the preset has, are `fit_radius` 10,
            `radius` 5, `beta` 10, `steps` 256.

    Source: IRNet (arXiv:1904.05044) and its code, constants included.
    Differs: without the displacement branch, which separates instances. Labels lie on the grid of stride 4 of the whole
        image before a crop is scaled. `background: auto` and `walk` are ours: maps of other classifiers than the
        published one want another score. The walk is exact and sparse, see `ops.affinity.random_walk`.
    """

    spec = SPEC
    stride: ClassVar[int] = STRIDE

    def __init__(
        self,
        *,
        output_stride: int = 16,
        dilation: bool = False,
        foreground: float = 0.30,
        certain_background: float = 0.05,
        background: float | Literal["auto", "walk"] = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        try:
            self.thresholds = ConfidentThresholds(foreground, certain_background)
        except ValueError as error:
            raise ConfigError(f"model.init_args of {self.spec.name}: {error}") from error
        if background not in ("auto", "walk") and (isinstance(background, str) or not 0 < background < 1):
            raise ConfigError(f"Expected model.init_args.background in (0, 1), auto or walk, but got {background!r}.")
        self.background = None if isinstance(background, str) else float(background)
        self.refiner = self.build_refiner(LABEL_CRF)
        h = self.hparams
        self.network = BoundaryNetwork(
            h.backbone, pretrained=h.pretrained, output_stride=output_stride, dilation=dilation
        )

    def confident(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """See `AffinityTask`."""
        cam = batch["inputs"]["cam"]
        return confident_labels(batch["pixels"], cam, classes, thresholds=self.thresholds, refine=self.refiner)

    def boundary(self, image: Tensor, valid: Tensor, *, flip: bool = False) -> Tensor:
        """Probability of a boundary `(B, 1, h, w)`; 1 outside the image. With `flip` the mirrored image counts, too."""
        logits = self.network(image)
        if flip:
            logits = (logits + self.network(image.flip(-1)).flip(-1)) / 2
        inside = valid_cells(valid, (logits.shape[-2], logits.shape[-1]))
        return torch.where(inside[:, None], logits.float().sigmoid(), 1.0)

    def affinity(self, image: Tensor, valid: Tensor, *, radius: int) -> Tensor:
        """See `AffinityTask`."""
        return path_affinity(self.boundary(image, valid), radius=radius)

    def on_predict_start(self) -> None:
        """Choose the background score if that was left to us: the same one for a run and for its continuation."""
        if self.background is None and self.hparams.background == "auto":
            records = subsample_evenly(self.trainer.datamodule.records("train"), BACKGROUND_IMAGES)
            self.background = self.choose_background(self.whole_batches(records, "background score"))
            log.info("background score %.3f: Otsu's threshold of %d walked maps", self.background, len(records))

    @torch.no_grad()
    def choose_background(self, batches: Iterable[Batch]) -> float:
        """Otsu's threshold of the largest walked score over all cells of some images, in (0, 1); reads no masks."""
        counts = torch.zeros(1, dtype=torch.int64, device=self.device)
        for batch in batches:
            walked, _ = self.spread(batch, batch["inputs"]["cam"])
            inside = valid_cells(batch["valid"], (walked.shape[-2], walked.shape[-1]))
            counts = counts + foreground_histogram(walked, valid=inside).sum(0)
        return float(otsu_threshold(counts))

    def inference_info(self) -> dict[str, Any]:
        """The background score after the walk; chosen here if a continued run had nothing left to predict."""
        if self.background is None and self._trainer is not None:
            self.on_predict_start()
        return {} if self.background is None else {"background_after_walk": self.background}

    def spread(self, batch: Batch, cam: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs after the walk `(B, K, h, w)` in [0, 1], and boundaries `(B, h, w)`."""
        walked, boundary = self._walks(batch, cam, stopped=True)
        return walked / walked.amax((1, 2, 3), keepdim=True).clamp_min(1e-5), boundary

    def _walks(self, batch: Batch, scores: Tensor, *, stopped: bool) -> tuple[Tensor, Tensor]:
        """Scores `(B, K, h, w)` after the walk, and boundaries, on which a walk that is `stopped` does not start."""
        boundary = self.boundary(batch["image"], batch["valid"], flip=True)
        cells = self.cells_of(scores)
        inside = valid_cells(batch["valid"], (cells.shape[-2], cells.shape[-1]))
        affinity = path_affinity(boundary, radius=self.hparams.radius)
        walked = self.walk(cells, affinity, inside, boundary=boundary if stopped else None)
        return walked, boundary[:, 0]

    def walked(self, batch: Batch, cam: Tensor) -> tuple[Tensor, Tensor]:
        """See `AffinityTask`; the background gets a constant score after the walk of the tags, or walks with them."""
        if self.hparams.background == "walk":
            background = background_score(cam, exponent=1)
            return self._walks(batch, torch.cat([background, cam], dim=1), stopped=False)
        walked, boundary = self.spread(batch, cam)
        threshold = self.background
        if threshold is None:  # no run has chosen yet: judge by these images alone
            inside = valid_cells(batch["valid"], (walked.shape[-2], walked.shape[-1]))
            threshold = float(otsu_threshold(foreground_histogram(walked, valid=inside).sum(0)))
        return torch.cat([background_score(walked, threshold=threshold), walked], dim=1), boundary
