"""The accumulator behind every score: exact sums over batches and ranks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dhr_lightning.evaluation.metrics.boundary import boundary_counts
from dhr_lightning.evaluation.metrics.counts import joint_counts
from dhr_lightning.evaluation.metrics.scores import Scores, scores


class ConfusionMatrix(Metric):
    """Confusion matrix over a whole split, summed over batches and ranks; `scores` turns it into numbers."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    matrix: Tensor
    boundary: Tensor

    def __init__(
        self, num_classes: int, *, ignore_index: int = 255, boundary_ratio: float | None = None, **settings: Any
    ) -> None:
        """Start from zero.

        Args:
            num_classes: C, background included.
            ignore_index: outside 0..C-1.
            boundary_ratio: also count for Boundary IoU, with this width of the band as a share of the image diagonal.
                Only for whole images without padding.
            settings: passed to `torchmetrics.Metric`.
        """
        super().__init__(**settings)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundary_ratio = boundary_ratio
        zeros = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")
        self.add_state("boundary", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, joint: Tensor | None = None) -> None:
        """Add a batch; arguments and errors as in `confusion_matrix`, and in `boundary_counts` if it is counted.

        Args:
            prediction: `(B, H, W)`, or any shape without Boundary IoU.
            target: same shape.
            joint: `joint_counts` of the two, where the caller has them already.
        """
        values = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
        if joint is None:
            joint = joint_counts(prediction[None], target[None], **values)
        self.matrix = self.matrix + joint.sum(0)[: self.num_classes]
        if self.boundary_ratio is not None:
            in_band = boundary_counts(prediction, target, ratio=self.boundary_ratio, **values)
            self.boundary = self.boundary + in_band

    def compute(self) -> Tensor:
        """Return the `(C, C + 1)` int64 counts so far."""
        return self.matrix

    def scores(self) -> Scores:
        """Return the scores so far, on this rank or, inside `sync_context`, over all."""
        return scores(self.matrix, self.boundary)
