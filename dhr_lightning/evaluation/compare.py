"""Masks of one step beside those of another, image by image."""

from collections.abc import Sequence

import numpy as np
import torch

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import read_gt_mask
from dhr_lightning.evaluation.metrics import confusion_matrix, scores


def compare_masks(
    store: ArtifactStore, address: str, previous: str, records: Sequence[Record], classes: ClassSet
) -> dict[str, float]:
    """Share of pixels unlike `previous`, share of tags without a pixel and, with ground truth, mIoU; all in [0, 1].

    Args:
        store: the artifacts.
        address: masks of the training split.
        previous: masks that they are compared with.
        records: images of the training split.
        classes: class list.
    """
    changed = pixels = missing = tags = 0
    matrix = torch.zeros(1, dtype=torch.int64)
    for record in records:
        mask = read_mask(store.path(address, "train", record.id))
        before = read_mask(store.path(previous, "train", record.id))
        changed, pixels = changed + int((mask != before).sum()), pixels + mask.size
        found = set(np.unique(mask).tolist())
        tags, missing = tags + len(record.tags), missing + len(set(record.tags) - found)
        true_mask = read_gt_mask(record)
        if true_mask is not None:
            truth = torch.from_numpy(true_mask.astype(np.int64))
            matrix = matrix + confusion_matrix(
                torch.from_numpy(mask.astype(np.int64)),
                truth,
                num_classes=classes.num_classes,
                ignore_index=classes.ignore_index,
            )
    figures = {"changed_pixels": changed / max(pixels, 1), "missing_tags": missing / max(tags, 1)}
    if matrix.numel() > 1:
        figures["miou"] = float(scores(matrix).miou)
    return figures
