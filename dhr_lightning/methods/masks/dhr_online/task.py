"""DHR as it is published: the masks of a crop come from the features of this very step."""

from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.masks.dhr_online.spec import SPEC
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.models.segmenter import SegmenterOutput


class OnlineDHRTask(DHRTask):
    """Train segmentation and classification together on masks that are made anew at every step.

    The first masks and the features of the whole image are brought to the crop; CAM and features of the network are
    those of the forward pass whose loss is taken. In the end the masks of whole training images are written once.

    Args:
        **options: see `DHRTask`. `cam_scales` count for the masks of whole images only: a step sees one view.

    Source: DHR (arXiv:2404.00380), Sec. 3, and its code.
    Differs: features of the whole image follow flip, scale and box of the crop, which the code leaves out. As there, a
        tag whose object lies outside the crop may get pixels.
    """

    spec = SPEC

    def targets(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        """Masks `(B, H, W)` of the crops of a batch, made from the network's own output; 255 outside the image."""
        with torch.no_grad():
            made = self.rebalanced(self.inputs_of(batch, self._step_cam(output), output.features)).mask
        return torch.where(batch["valid"], made.long(), self.classes.ignore_index)

    def _step_cam(self, output: SegmenterOutput) -> Tensor:
        """Class activation maps `(B, T, h, w)` of the crops, not negative, not normalised."""
        if self.hparams.seed_view == "paper":
            return self.published_seed_cam(output.features[-1].detach())
        return output.cam.detach().float().relu()

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Rebalanced masks of whole training images; masks of all other images from all classes."""
        if self.trainer.datamodule.predict_splits[dataloader_idx] == "train":
            return {"mask": cut_masks(self.pseudo_masks(batch).mask, batch)}
        return super().predict_step(batch, batch_idx, dataloader_idx)
