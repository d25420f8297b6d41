"""Stage 1: a multi-label classifier whose class activation maps become base masks."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAveragePrecision

from dhr_lightning.data.catalog import spread
from dhr_lightning.data.datamodule import Needs
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.models.classifier import CAMClassifier, masked_mean, multi_scale_cam
from dhr_lightning.ops.cam import background_score, compact_keys, gather_classes, labels_from_scores, normalize_cam
from dhr_lightning.ops.confident import LABEL_CRF, ConfidentThresholds, confident_labels
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.ops.refine import Refiner
from dhr_lightning.ops.thresholds import foreground_histogram, otsu_threshold
from dhr_lightning.tasks.base import BaseTask, cut_masks

BACKGROUND_IMAGES = 128
log = logging.getLogger("dhr_lightning")


class CAMTask(BaseTask):
    """Train on tags; predict CAMs and base masks of the training images.

    Args:
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path.
        output_stride: 8 or 16.
        dilation: whether stages beyond the output stride are dilated, see `models.backbones.build_encoder`.
        scales: relative image sizes summed in the CAM.
        cam_stride: pixels per CAM cell on disk.
        background: constant background score of the base mask, in (0, 1), or `auto`: Otsu's threshold of the CAMs of
            some training images, chosen once before prediction. No pixel label is read.
        confident: base masks that leave unsure pixels out: `foreground` and `background` thresholds, see
            `ops.confident.ConfidentThresholds`, in place of `background`; `null` to label every pixel.
        refine: `auto`, `lattice`, `pydensecrf`, `pamr` or `none`.
        crf: dense CRF settings of the base mask; those of IRNet's `cam_to_ir_label` are the default of `confident`.
        workers: processes for pydensecrf.
        refine_scale: refine at this fraction of the image size, in (0, 1].
        **options: optimiser and schedule, see `BaseTask`.

    Source: CAM (arXiv:1512.04150); recipe of IRNet (arXiv:1904.05044).
    Differs: IRNet averages its maps over the whole padded crop, here padding has no vote.
    """

    step: ClassVar[str] = "cam"
    writes: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("cam", "base_mask")}
    needs = Needs(predict_splits=("train",))

    def __init__(
        self,
        class_names: list[str],
        has_background: bool = True,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        output_stride: int = 16,
        dilation: bool = True,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0),
        cam_stride: int = 4,
        background: float | Literal["auto"] = "auto",
        confident: dict[str, float] | None = None,
        refine: str = "auto",
        crf: dict[str, float] | None = None,
        workers: int = 2,
        refine_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(class_names, has_background, **options)
        self.save_hyperparameters()
        if background != "auto" and (isinstance(background, str) or not 0 < background < 1):
            raise ConfigError(f"Expected model.init_args.background in (0, 1) or auto, but got {background!r}.")
        self.background = None if background == "auto" else background
        self.background_rule = "given"
        self.network = CAMClassifier(
            backbone, self.classes.num_tags, pretrained=pretrained, output_stride=output_stride, dilation=dilation
        )
        self.confident = None if confident is None else self._thresholds(confident)
        settings = CRFSettings(**(crf or {})) if confident is None else replace(LABEL_CRF, **(crf or {}))
        self.refiner = Refiner(refine, settings, workers=workers, scale=refine_scale)
        self.average_precision = MultilabelAveragePrecision(self.classes.num_tags, average="none")

    def _thresholds(self, confident: dict[str, float]) -> ConfidentThresholds:
        if not self.classes.has_background:
            raise ConfigError("model.init_args.confident needs a background class, but this class list has none.")
        try:
            return ConfidentThresholds(**confident)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.init_args.confident is {confident}: {error}") from error

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> raw CAMs `(B, T, h, w)`."""
        return self.network(image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Multi-label soft margin loss on the mean of each map."""
        logits = masked_mean(self.network(batch["image"]), batch["valid"])  # (B, T)
        loss = F.multilabel_soft_margin_loss(logits, batch["tags"])
        self.log("train/loss_cls", loss, prog_bar=True, batch_size=len(logits))
        return self.check_loss(loss, batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Tag loss and average precision; the ground truth is not used, and an image without tags shows no class."""
        logits = masked_mean(self.network(batch["image"]), batch["valid"]).float()
        self.average_precision.update(logits, batch["tags"].long())
        loss = F.multilabel_soft_margin_loss(logits, batch["tags"])
        self.log("val/loss_cls", loss, batch_size=len(logits), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log `val/tag_map`, the mean over the classes that some image shows; nothing where no image has a tag."""
        found = self.average_precision.compute()  # (T,); a class has 0 only if no image shows it
        if bool((found > 0).any()):
            self.log("val/tag_map", found[found > 0].mean(), prog_bar=True, sync_dist=True)
        self.average_precision.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_predict_start(self) -> None:
        """Choose the background score if that was left to us: the same one for a run and for its continuation."""
        if self.hparams.background == "auto" and self.classes.has_background:
            self.eval()
            records = spread(self.trainer.datamodule.records("train"), BACKGROUND_IMAGES)
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
            keys, _ = compact_keys(batch["tags"], offset=self.classes.offset, include_background=False)
            with self.trainer.precision_plugin.forward_context():
                cam = self.compact_cam(batch, keys)
            counts = counts + foreground_histogram(cam, valid=_cells(batch, cam)).sum(0)
        return float(otsu_threshold(counts))

    def making(self) -> dict[str, Any]:
        """The background score; chosen here if a continued run had nothing left to predict."""
        if self.background is None and self._trainer is not None:
            self.on_predict_start()
        if self.background is None:
            return {}
        return {"background": self.background, "background_rule": self.background_rule}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """CAMs `(keys, maps)` and base masks of a batch of whole images."""
        keys, present = compact_keys(batch["tags"], offset=self.classes.offset, include_background=False)
        cam = self.compact_cam(batch, keys)
        masks = self.base_masks(batch, cam, keys, present)
        return {
            "cam": [(k[p].cpu(), c[p].cpu()) for k, p, c in zip(keys, present, self._crop(cam, batch), strict=True)],
            "base_mask": cut_masks(masks, batch),
        }

    def compact_cam(self, batch: Batch, keys: Tensor) -> Tensor:
        """Normalised multi-scale CAMs `(B, K, h, w)` in [0, 1] of the tagged classes."""
        height, width = batch["image"].shape[-2:]
        size = (height // self.hparams.cam_stride, width // self.hparams.cam_stride)
        cam = multi_scale_cam(self.network, batch["image"], scales=tuple(self.hparams.scales), flip=True, size=size)
        return normalize_cam(gather_classes(cam, keys, offset=self.classes.offset), valid=_cells(batch, cam))

    def base_masks(self, batch: Batch, cam: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """Argmax of the refined `[background, CAM]`, or confident labels -> `(B, H, W)` class values."""
        score = F.interpolate(cam, batch["pixels"].shape[-2:], mode="bilinear", align_corners=False)
        image, valid = batch["pixels"].permute(0, 2, 3, 1), batch["valid"]
        if self.confident is not None:
            return confident_labels(image, score, keys, valid=valid, thresholds=self.confident, refine=self.refiner)
        if self.classes.has_background:
            threshold = self.background
            if threshold is None:  # no run has chosen yet: judge by these images alone
                threshold = float(otsu_threshold(foreground_histogram(cam, valid=_cells(batch, cam)).sum(0)))
            score = torch.cat([background_score(score, threshold=threshold), score], dim=1)
            keys = F.pad(keys, (1, 0), value=0)
            present = F.pad(present, (1, 0), value=True)
        score = score * present[:, :, None, None]
        score = score / score.sum(1, keepdim=True).clamp(min=1e-5)
        refined = self.refiner(image, score, present, valid=valid)
        return labels_from_scores(refined, keys, present=present)

    def _crop(self, cam: Tensor, batch: Batch) -> list[Tensor]:
        """Cut the padding of each image off its maps."""
        stride = self.hparams.cam_stride
        return [
            c[:, : -(-g.size[0] // stride), : -(-g.size[1] // stride)]
            for c, g in zip(cam, batch["geometry"], strict=True)
        ]


def _cells(batch: Batch, cam: Tensor) -> Tensor:
    """Cells `(B, h, w)` of `cam` that lie inside the images."""
    return F.interpolate(batch["valid"][:, None].float(), cam.shape[-2:], mode="nearest")[:, 0] > 0
