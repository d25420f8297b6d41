"""A segmenter trained on fixed masks, such as the baseline on base masks."""

from typing import Any

from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import BaseTask, cut_masks
from dhr_lightning.methods.inference import Inference
from dhr_lightning.methods.segmentation import (
    SegmentationMixin,
    allowed_classes,
    check_loss_size,
    initialise,
    pixel_loss,
)
from dhr_lightning.methods.segmenters.wss.spec import SPEC
from dhr_lightning.models.segmenter import Segmenter


class WSSTask(SegmentationMixin, BaseTask):
    """Train a segmenter on one kind of mask; predict training images (tags known) and all others (tags unknown).

    Args:
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path.
        output_stride: 8 or 16.
        decoder: decoder name, see `models.segmenter.Segmenter`.
        decoder_options: further arguments of the decoder.
        loss_size: `decoder` or `full`, see `pixel_loss`.
        ema: decay of the average of the weights that validation and prediction use, see
            `callbacks.average.WeightAverage`; `null` for none.
        ema_warmup: let the first steps count more in that average.
        scales: relative image sizes at prediction, each with its mirror.
        test_crf: dense CRF on predicted masks, see `methods.inference.Inference`; `null` for none.
        force_masks: train on the masks named even if their gate calls them harmful.
        **options: optimiser and schedule, see `BaseTask`.

    Source: the WSS baseline of DHR (arXiv:2404.00380), DeepLabv3+ on pseudo masks.
    """

    spec = SPEC

    def __init__(
        self,
        class_names: list[str],
        has_background: bool = True,
        backbone: str = "resnet101",
        pretrained: bool | str = False,
        output_stride: int = 8,
        decoder: str = "deeplabv3plus",
        decoder_options: dict[str, Any] | None = None,
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
        loss = pixel_loss(
            output, batch["inputs"]["masks"], size=self.hparams.loss_size, ignore_index=self.classes.ignore_index
        )
        self.log("train/loss_seg", loss, prog_bar=True, batch_size=len(batch["image"]))
        return self.check_loss(loss, batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions against the ground truth, where there is any."""
        self.update_metric(self(batch["image"]), batch)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks at image size; on the training split restricted to the image's tags."""
        split = self.trainer.datamodule.predict_splits[dataloader_idx]
        allowed = allowed_classes(batch["tags"], self.classes.offset) if split == "train" else None
        masks = self.inference(self.network, batch, allowed=allowed)
        return {"mask" if split == "train" else "prediction": cut_masks(masks, batch)}
