"""Scores of masks against the truth: counts that add up exactly, and what is computed from them."""

from dhr_lightning.evaluation.metrics.boundary import BOUNDARY_RATIO, boundary_counts
from dhr_lightning.evaluation.metrics.confusion import ConfusionMatrix
from dhr_lightning.evaluation.metrics.counts import confusion_matrix, joint_counts
from dhr_lightning.evaluation.metrics.lost_tags import LostTags, MaskStatistics
from dhr_lightning.evaluation.metrics.scores import Scores, scores

__all__ = [
    "BOUNDARY_RATIO",
    "ConfusionMatrix",
    "LostTags",
    "MaskStatistics",
    "Scores",
    "boundary_counts",
    "confusion_matrix",
    "joint_counts",
    "scores",
]
