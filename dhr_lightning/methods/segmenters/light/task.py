"""A light segmenter on stored features."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.data.stored import GridCrop
from dhr_lightning.errors import ConfigError, check_keys
from dhr_lightning.losses.soft_labels import soft_cross_entropy
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.inference import Inference
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.scored import ScoredTask
from dhr_lightning.methods.segmentation import allowed_classes
from dhr_lightning.methods.segmenters.light.gate import TagGate
from dhr_lightning.methods.segmenters.light.spec import SPEC
from dhr_lightning.methods.stored import StoredTask
from dhr_lightning.models.light import LightSegmenter
from dhr_lightning.ops._checks import full_precision

HEAD = {"width": 192, "blocks": 2, "upsample": 2, "dropout": 0.0}


class LightTask(ScoredTask, StoredTask):
    """Train a light segmenter on one kind of mask; predict training images (tags known) and all others (unknown).

    Args:
        head: `width`, `blocks`, `upsample` and `dropout` of the network, see `models.light.LightSegmenter`.
        crop_cells: side of a training crop in cells of the features.
        mirror: probability of a mirrored training crop.
        ema: decay of the average of weights, see `callbacks.average.WeightAverage`; null for none.
        ema_warmup: see there.
        flip: predict the mirrored features, too, and average.
        gate: multiply the probability of each class by that of its tag, as the classifier read as `tagger` sees it.
        test_crf: dense CRF on predicted masks, see `methods.inference.Inference`; null for none.
        **options: layers, see `StoredTask`; classes, optimiser and schedule, see `BaseTask`.

    Source: ours; soft labels are the shares of the classes in a cell, so that no border is lost to the grid.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        head: dict[str, Any] | None = None,
        crop_cells: int = 24,
        mirror: float = 0.5,
        ema: float | None = 0.99,
        ema_warmup: bool = True,
        flip: bool = False,
        gate: bool = False,
        test_crf: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.head_settings = _head_settings(head or {})
        self.grid_crop = GridCrop(crop_cells, mirror, self.head_settings["upsample"])
        self.inference = Inference((1.0,), flip=flip, test_crf=test_crf, ignore_index=self.classes.ignore_index)
        self.inference.settings = replace(self.inference.settings, gate=gate)
        self.gate: TagGate | None = None

    def configure_model(self) -> None:
        """Build the network once the number of channels is known."""
        if not hasattr(self, "network"):
            self.network = LightSegmenter(self.tap_channels(), self.classes.num_classes, **self.head_settings)
        super().configure_model()

    def on_fit_start(self) -> None:
        """Standardise the features, unless a run is being resumed."""
        if self.trainer.ckpt_path is None:
            self.network.set_statistics(*self.feature_statistics())

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, h, w)` stored features -> logits `(B, C, 2 h, 2 w)`."""
        logits: Tensor = self.network(features)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy on the shares of the classes in each cell of the doubled grid."""
        areas = batch["inputs"]["masks"]  # share of each class in a whole cell: zero where unlabelled
        labelled = areas.sum(1)  # (B, 2 h, 2 w)
        shares = areas / labelled[:, None].clamp_min(1e-6)
        loss = soft_cross_entropy(self(batch["inputs"]["features"]), shares, labelled)
        self.log("train/loss_seg", loss, prog_bar=True, batch_size=len(batch["tags"]))
        return self.check_loss(loss, batch, batch_idx)

    def probability(self, batch: Batch) -> Tensor:
        """Class probabilities `(B, C, H, W)` of whole images, gated if that is set."""
        features, size = batch["inputs"]["features"], batch["pixels"].shape[-2:]
        with full_precision(features):
            probability = self(features).softmax(1)
            if self.inference.settings.flip:
                probability = (probability + self(features.flip(-1)).softmax(1).flip(-1)) / 2
            if self.gate is not None:
                probability = probability * self.gate(features)[..., None, None]
        return F.interpolate(probability, size, mode="bilinear", align_corners=False)

    def on_predict_start(self) -> None:
        """Load the tag classifier, if predictions are gated by it."""
        if not self.inference.settings.gate:
            return
        path = self.trainer.datamodule.weights("tagger")
        if path is None:
            raise ConfigError(
                f"{self.step} gates by predicted tags, but reads no `tagger`. Add `tagger: cam` to what it reads, or "
                "set gate: false."
            )
        self.set_gate(TagGate.load(path, self.tap_channels(), self.classes).to(self.device))

    def set_gate(self, gate: TagGate) -> None:
        """Gate predictions by a tag classifier from now on."""
        self.gate = gate

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks at image size; on the training split restricted to the image's tags."""
        split = self.trainer.datamodule.predict_splits[dataloader_idx]
        allowed = allowed_classes(batch["tags"], self.classes.offset) if split == "train" else None
        masks = self.inference.masks(self.probability(batch), batch, allowed=allowed)
        return {"mask" if split == "train" else "prediction": cut_masks(masks, batch)}


def _head_settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """Settings of the network.

    Raises:
        ConfigError: if one is unknown.
    """
    check_keys(chosen, HEAD, "head")
    return {**HEAD, **chosen}
