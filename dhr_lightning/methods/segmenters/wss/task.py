"""A segmenter trained on fixed masks, such as the baseline on base masks."""

from typing import Any

from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.segmentation import SegmentationTask, allowed_classes
from dhr_lightning.methods.segmenters.wss.spec import SPEC


class WSSTask(SegmentationTask):
    """Train a segmenter on one kind of mask; predict training images (tags known) and all others (tags unknown).

    The arguments are those of `SegmentationTask`.

    Source: the WSS baseline of DHR (arXiv:2404.00380), DeepLabv3+ on pseudo masks.
    """

    spec = SPEC

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Pixel cross entropy on the masks."""
        loss = self.network_loss(self.network(batch["image"]), batch["inputs"]["masks"])
        self.log("train/loss_seg", loss, prog_bar=True, batch_size=len(batch["image"]))
        return self.check_loss(loss, batch, batch_idx)

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks at image size; on the training split restricted to the image's tags."""
        split = self.trainer.datamodule.predict_splits[dataloader_idx]
        allowed = allowed_classes(batch["tags"], self.classes.offset) if split == "train" else None
        masks = self.inference(self.network, batch, allowed=allowed)
        return {"mask" if split == "train" else "prediction": cut_masks(masks, batch)}
