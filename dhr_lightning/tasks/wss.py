"""Stage 3a: a segmenter trained on masks, by default on the base masks of stage 1."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.catalog import SPLITS
from dhr_lightning.data.datamodule import Needs
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.models.segmenter import Segmenter, SegmenterOutput
from dhr_lightning.tasks.base import BaseTask, SegmentationMixin, cut_masks, load_encoder
from dhr_lightning.tasks.inference import Inference

LOSS_SIZES = ("decoder", "full")


class WSSTask(SegmentationMixin, BaseTask):
    """Train a segmenter on one kind of mask; predict training images (tags known) and all others (tags unknown).

    Args:
        masks: artifact kind to train on, or `truth` for the fully supervised bound.
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path.
        output_stride: 8 or 16.
        decoder: decoder name, see `models.segmenter.Segmenter`.
        decoder_options: further arguments of the decoder.
        init_from: artifact kind whose checkpoint fills the encoder (`cam`), or `null`.
        loss_size: `decoder` or `full`, see `pixel_loss`.
        ema: decay of the average of the weights that validation and prediction use, see
            `callbacks.average.WeightAverage`; `null` for none.
        ema_warmup: let the first steps count more in that average.
        scales: relative image sizes at prediction, each with its mirror.
        test_crf: dense CRF on predicted masks, see `tasks.inference.Inference`; `null` for none.
        force_masks: train on `masks` even if their gate calls them harmful.
        **options: optimiser and schedule, see `BaseTask`.

    Source: the WSS baseline of DHR (arXiv:2404.00380), DeepLabv3+ on pseudo masks.
    """

    step: ClassVar[str] = "wss"
    writes: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("wss_mask",),
        "val": ("prediction_base",),
        "test": ("prediction_base",),
    }

    def __init__(
        self,
        class_names: list[str],
        has_background: bool = True,
        masks: str = "base_mask",
        backbone: str = "resnet101",
        pretrained: bool | str = False,
        output_stride: int = 8,
        decoder: str = "deeplabv3plus",
        decoder_options: dict[str, Any] | None = None,
        init_from: str | None = "cam",
        loss_size: str = "decoder",
        ema: float | None = 0.999,
        ema_warmup: bool = True,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0),
        test_crf: dict[str, Any] | None = None,
        force_masks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(class_names, has_background, **options)
        self.save_hyperparameters()
        check_loss_size(loss_size)
        self.network = Segmenter(
            backbone,
            self.classes.num_classes,
            decoder=decoder,
            decoder_options=decoder_options,
            pretrained=pretrained,
            output_stride=output_stride,
        )
        self.inference = Inference(scales, test_crf=test_crf, ignore_index=self.classes.ignore_index)
        self.needs = Needs(train_masks=masks, predict_splits=SPLITS, force_masks=force_masks)
        self.setup_metric()

    def on_fit_start(self) -> None:
        """Start from the encoder of an earlier step, unless a run is being resumed."""
        initialise(self, keys=("encoder",))

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised -> logits `(B, C, H, W)`."""
        return self.network(image).logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Pixel cross entropy on the masks."""
        output = self.network(batch["image"])
        loss = pixel_loss(output, batch["mask"], size=self.hparams.loss_size, ignore_index=self.classes.ignore_index)
        self.log("train/loss_seg", loss, prog_bar=True, batch_size=len(batch["image"]))
        return self.check_loss(loss, batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions against the ground truth, where there is any."""
        self.update_metric(self(batch["image"]), batch)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks at image size; on the training split restricted to the image's tags."""
        split = self.needs.predict_splits[dataloader_idx]
        allowed = allowed_classes(batch["tags"], self.classes.offset) if split == "train" else None
        masks = self.inference(self.network, batch, allowed=allowed)
        return {kind: cut_masks(masks, batch) for kind in self.writes[split]}


def allowed_classes(tags: Tensor, offset: int) -> Tensor:
    """Tags `(B, T)` plus background, if there is one -> `(B, C)` bool."""
    return F.pad(tags > 0, (offset, 0), value=True)


def check_loss_size(size: str) -> None:
    """Refuse a size that `pixel_loss` does not know.

    Raises:
        ConfigError: names it.
    """
    if size not in LOSS_SIZES:
        raise ConfigError(f"Expected model.init_args.loss_size to be {' or '.join(LOSS_SIZES)}, but got {size!r}.")


def pixel_loss(output: SegmenterOutput, mask: Tensor, *, size: str, ignore_index: int) -> Tensor:
    """Cross entropy of a segmenter on masks of the image, see `segmentation_loss`.

    Args:
        output: of the network.
        mask: `(B, H, W)` int64 class values.
        size: `decoder` compares the logits where the decoder ends, stride 4 for DeepLabv3+, with the pixel in the
            middle of each of their cells; `full` interpolates the logits to every pixel.
        ignore_index: pixels without a label.

    Source: loss at the size of the decoder as in the published code of DHR (arXiv:2404.00380).
    Differs: there the top left pixel counts, which belongs to logits that are stretched with aligned corners. Ours are
        stretched cell by cell, so that it would move every prediction by 1.5 pixels to the right and down.
    """
    if size == "full":
        return segmentation_loss(output.logits, mask, ignore_index=ignore_index)
    height, width = mask.shape[-2:]
    rows, columns = (torch.arange(cells, device=mask.device) for cells in output.decoder_logits.shape[-2:])
    rows, columns = (cells * output.stride + output.stride // 2 for cells in (rows, columns))
    middle = mask[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)]  # (B, h, w)
    return segmentation_loss(output.decoder_logits, middle, ignore_index=ignore_index)


def segmentation_loss(logits: Tensor, mask: Tensor, *, ignore_index: int) -> Tensor:
    """Mean cross entropy over labelled pixels; zero, with a gradient of zero, when no pixel is labelled.

    Args:
        logits: `(B, C, H, W)`.
        mask: `(B, H, W)` int64 class values.
        ignore_index: pixels without a label.
    """
    total = F.cross_entropy(logits.float(), mask, ignore_index=ignore_index, reduction="sum")
    return total / (mask != ignore_index).sum().clamp(min=1)


def initialise(task: BaseTask, *, keys: tuple[str, ...]) -> None:
    """Fill parts of a task's network from the checkpoint recorded with `init_from`, unless a run is being resumed."""
    kind = task.hparams.init_from
    if kind is None or task.trainer.ckpt_path is not None:
        return
    load_encoder(task.network, task.trainer.datamodule.checkpoint_of(kind), task.classes, keys=keys)
