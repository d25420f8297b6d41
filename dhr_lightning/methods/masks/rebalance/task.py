"""The mask step of DHR (arXiv:2404.00380) alone, for those who want its masks and no segmenter."""

from typing import Any

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.masks.rebalance.spec import SPEC
from dhr_lightning.methods.memory import one_by_one_if_needed


class RebalanceTask(DHRTask):
    """Predict rebalanced masks of the training images with the network of an earlier step.

    The arguments are those of `DHRTask`; what concerns training and predictions of other images has no effect. The
    masks are those of round 0 of `DHRTask`, which starts from the same network.

    Source: DHR (arXiv:2404.00380), Sec. 3.
    """

    spec = SPEC

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def on_predict_start(self) -> None:
        """Take encoder and CAM head of the step read as `init`."""
        self.take_over_weights()

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks of whole training images."""
        return {"mask": cut_masks(self.pseudo_masks(batch).mask, batch)}
