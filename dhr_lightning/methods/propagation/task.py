"""Class activation maps -> masks along image edges, by a background score and a refinement; nothing is fitted."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.propagation.crf.spec import SPEC
from dhr_lightning.methods.refinement import RefiningTask
from dhr_lightning.ops.cam import background_score, equal_activation, labels_from_scores
from dhr_lightning.ops.confident import LABEL_CRF, ConfidentThresholds, confident_labels
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold

BACKGROUND_IMAGES = 128
log = logging.getLogger("dhr_lightning")


class PropagationTask(RefiningTask):
    """Predict masks from the CAMs of an earlier step.

    Args:
        background: constant background score, in (0, 1), or `auto`: Otsu's threshold of the CAMs of some training
            images, chosen once before prediction. No pixel label is read.
        background_exponent: in place of a constant, the background score is `(1 - max_k M_k)` to this power, so that
            the refinement sees how sure the maps are; 1 after a learnt background, whose scores are probabilities.
        confident: masks that leave unsure pixels out: `foreground` and `background` thresholds, see
            `ops.confident.ConfidentThresholds`, in place of `background`; `null` to label every pixel.
        crf: dense CRF settings; those of IRNet's `cam_to_ir_label` are the default of `confident`.
        **options: refinement, see `RefiningTask`; no optimiser is used.

    Source: base masks of IRNet (arXiv:1904.05044) and DHR (arXiv:2404.00380).
    """

    spec = SPEC

    def __init__(
        self,
        *,
        background: float | Literal["auto"] = "auto",
        background_exponent: float | None = None,
        confident: dict[str, float] | None = None,
        crf: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if background != "auto" and (isinstance(background, str) or not 0 < background < 1):
            raise ConfigError(f"Expected model.init_args.background in (0, 1) or auto, but got {background!r}.")
        self.background = None if background == "auto" else background
        self.background_rule = "given"
        if background_exponent is not None:
            if background_exponent <= 0:
                raise ConfigError(f"Expected model.init_args.background_exponent > 0, but got {background_exponent}.")
            self.background = equal_activation(background_exponent)
            self.background_rule = f"(1 - CAM)^{background_exponent:g}"
        self.confident = None if confident is None else self._thresholds(confident)
        settings = CRFSettings(**(crf or {})) if confident is None else replace(LABEL_CRF, **(crf or {}))
        self.refiner = self.build_refiner(settings)

    def _thresholds(self, confident: dict[str, float]) -> ConfidentThresholds:
        if not self.classes.has_background:
            raise ConfigError("model.init_args.confident needs a background class, but this class list has none.")
        try:
            return ConfidentThresholds(**confident)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.init_args.confident is {confident}: {error}") from error

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def on_predict_start(self) -> None:
        """Choose the background score if that was left to us: the same one for a run and for its continuation."""
        if self.hparams.background == "auto" and self.classes.has_background and self.background is None:
            records = subsample_evenly(self.trainer.datamodule.records("train"), BACKGROUND_IMAGES)
            self.background = self.choose_background(self.whole_batches(records, "background score"))
            self.background_rule = f"Otsu, {len(records)} training images"
            log.info("background score %.3f: Otsu's threshold of %d training CAMs", self.background, len(records))

    @torch.no_grad()
    def choose_background(self, batches: Iterable[Batch]) -> float:
        """Otsu's threshold of the largest normalised activation over all pixels of some images, in (0, 1).

        Ours; it reads images and tags only.
        """
        counts = torch.zeros(1, dtype=torch.int64, device=self.device)
        for batch in batches:
            counts = counts + foreground_histogram(batch["inputs"]["cam"], valid=batch["valid"]).sum(0)
        return float(otsu_threshold(counts))

    def inference_info(self) -> dict[str, Any]:
        """The background score; chosen here if a continued run had nothing left to predict."""
        if self.background is None and self._trainer is not None:
            self.on_predict_start()
        if self.background is None:
            return {}
        return {"background": self.background, "background_rule": self.background_rule}

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks of a batch of whole images."""
        return {"mask": cut_masks(self.masks(batch, batch["inputs"]["cam"]), batch)}

    def masks(self, batch: Batch, cam: Tensor) -> Tensor:
        """Argmax of the refined `[background, CAM]`, or confident labels.

        Args:
            batch: whole images with tags.
            cam: `(B, K, H, W)` in [0, 1], maps of the tags in ascending order.

        Returns:
            `(B, H, W)` class values.
        """
        image, classes = batch["pixels"], self.tagged(batch)
        if self.confident is not None:
            return confident_labels(image, cam, classes, thresholds=self.confident, refine=self.refiner)
        score = cam
        if self.classes.has_background:
            threshold = self.background
            if threshold is None:  # no run has chosen yet: judge by these images alone
                threshold = float(otsu_threshold(foreground_histogram(cam, valid=batch["valid"]).sum(0)))
            exponent = self.hparams.background_exponent
            rest = background_score(cam, exponent=exponent, threshold=threshold if exponent is None else None)
            score = torch.cat([rest, cam], dim=1)
            classes = classes.with_background()
        score = score * classes.present[:, :, None, None]
        score = score / score.sum(1, keepdim=True).clamp(min=1e-5)
        refined = self.refiner(image, score, classes.present, valid=classes.valid)
        return labels_from_scores(refined, classes.keys, present=classes.present)
