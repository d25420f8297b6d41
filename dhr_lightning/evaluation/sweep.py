"""How good the activation maps would be at every background score: an oracle, for it reads the ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import read_cam
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.masks import strongest
from dhr_lightning.evaluation.truth import GroundTruth, TruthFacts

STEPS = 50
IMAGES = 200
_WIDTH, _HEIGHT = 600, 180


@dataclass(frozen=True)
class Sweep:
    """mIoU of activation maps against a constant background score.

    Args:
        split: split of the ground truth that was read.
        images: images counted, evenly spread over the split.
        thresholds: background scores, ascending, in (0, 1).
        miou: mIoU at each.
        chosen: score that the run used.
        rule: how it was chosen.
    """

    split: str
    images: int
    thresholds: tuple[float, ...]
    miou: tuple[float, ...]
    chosen: float
    rule: str

    @property
    def best(self) -> tuple[float, float]:
        """Score and mIoU of the oracle."""
        index = int(np.argmax(self.miou))
        return self.thresholds[index], self.miou[index]

    @property
    def reached(self) -> float:
        """MIoU at the chosen score, between two steps by a straight line."""
        return float(np.interp(self.chosen, self.thresholds, self.miou))

    @property
    def points(self) -> str:
        """The curve for an SVG of 600 x 180 units, mIoU 0 at the bottom and the best one near the top."""
        top = max(self.best[1], 1e-9) * 1.1
        pairs = zip(self.thresholds, self.miou, strict=True)
        return " ".join(f"{_WIDTH * x:.1f},{_HEIGHT * (1 - y / top):.1f}" for x, y in pairs)

    def record(self) -> dict[str, Any]:
        """For `report.json`."""
        threshold, miou = self.best
        return {
            "oracle": "reads the ground truth; never used to choose",
            "split": self.split,
            "images": self.images,
            "thresholds": list(self.thresholds),
            "miou": list(self.miou),
            "chosen": self.chosen,
            "chosen_by": self.rule,
            "chosen_miou": self.reached,
            "best": threshold,
            "best_miou": miou,
        }


def sweep_background(store: ArtifactStore, truth: GroundTruth, facts: TruthFacts, kind: MaskKind) -> Sweep | None:
    """Score activation maps at every background score in one pass.

    Args:
        store: the artifacts.
        truth: the ground truth.
        facts: its names as class values.
        kind: activation maps.

    Returns:
        The curve; None without a background or without any true mask.
    """
    if not facts.offset:
        return None
    classes = len(facts.names)
    joint = np.zeros((classes, classes, STEPS), np.int64)  # pixels by truth, strongest class and its activation
    images = 0
    for image_id in subsample_evenly(kind.ids, IMAGES):
        mask = truth.mask(kind.split, image_id)
        if mask is None:
            continue
        images += 1
        keys, cam = read_cam(store.path(kind.address, kind.split, image_id))
        labels, slot = np.zeros(mask.shape, np.int64), np.zeros(mask.shape, np.int64)
        if (keys > 0).any():
            strong, score = strongest(keys, cam, size=(mask.shape[0], mask.shape[1]))
            labels, slot = strong.astype(np.int64), np.clip(np.ceil(score * STEPS) - 1, 0, STEPS - 1).astype(np.int64)
        known = mask < classes
        flat = (mask[known].astype(np.int64) * classes + labels[known]) * STEPS + slot[known]
        joint += np.bincount(flat, minlength=joint.size).reshape(joint.shape)
    if not images:
        return None
    thresholds = tuple(step / STEPS for step in range(1, STEPS))
    return Sweep(kind.split, images, thresholds, _miou_at(joint), kind.threshold, kind.threshold_rule)


def _miou_at(joint: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Mean IoU when the `s` lowest steps of activation are background, s = 1, 2, ...; as in the rest of the report."""
    kept = joint[:, :, ::-1].cumsum(2)[:, :, -2::-1]  # (C, C, S - 1), pixels whose activation lies above step s
    kept[:, 0] += joint.sum((1, 2))[:, None] - kept.sum(1)  # the rest falls to the background
    hit = np.einsum("ccs->cs", kept)
    union = kept.sum(1) + kept.sum(0) - hit
    occurs = union > 0
    iou = np.divide(hit, union, out=np.zeros(hit.shape), where=occurs)
    return tuple((iou.sum(0) / occurs.sum(0)).tolist())
