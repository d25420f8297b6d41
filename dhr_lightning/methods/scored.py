"""What tasks share that say for every pixel which class it is."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.evaluation.metrics import ConfusionMatrix, scores
from dhr_lightning.methods.base import BaseTask


class ScoredTask(BaseTask):
    """Base of the tasks whose predictions are counted against the ground truth of whole images, where there is any.

    Args:
        **options: of the next base class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.confusion = ConfusionMatrix(self.classes.num_classes, ignore_index=self.classes.ignore_index)

    @abstractmethod
    def probability(self, batch: Batch) -> Tensor:
        """Class probabilities `(B, C, H, W)` of whole images in a single pass."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predictions against the ground truth."""
        probability = self.probability(batch)
        if "gt_mask" in batch:
            self.confusion.update(probability.argmax(1), batch["gt_mask"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/miou` and one `val/iou/<class>` for each class that occurs."""
        if not int(self.confusion.compute().sum()):
            return
        result = scores(self.confusion.compute())
        self.log("val/miou", result.miou, prog_bar=True, sync_dist=True)
        for name, value in zip(self.classes.names, result.iou.tolist(), strict=True):
            if value == value:
                self.log(f"val/iou/{name}", value, sync_dist=True)
        self.confusion.reset()

    on_test_epoch_end = on_validation_epoch_end
