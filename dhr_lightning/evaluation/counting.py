"""One pass over a split: integer counts of every kind of mask against the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.files import TruthAgreement
from dhr_lightning.errors import MaskError
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.masks import read_labels
from dhr_lightning.evaluation.truth import GroundTruth, TruthFacts, UInt8

if TYPE_CHECKING:  # torch is imported on use: a stage that is up to date must not wait for it
    from torch import Tensor

    from dhr_lightning.evaluation.metrics import ConfusionMatrix, MaskStatistics

Counts = npt.NDArray[np.int64]
Progress = Callable[[Sequence[str], str], Iterable[str]]
MaskReader = Callable[[MaskKind, str, UInt8 | None], UInt8 | None]


@dataclass
class MaskCounts:
    """Integer counts of one kind on one split, C classes.

    Args:
        kind: what was counted.
        confusion: pixels by true and predicted class, and those near the contours.
        tags: tags that the masks have lost.
        stuff: `(S, C + 1)` pixels of each background material by predicted class, the last column without one; only
            where the truth is background.
        images: images counted.
        labelled: images with a true mask.
        agreement: of the true masks with the tags.
        pixels: pixels of all images.
        area: of them, those with a class besides the background.
        image_miou: mean IoU per image, over the classes present in truth or mask.
    """

    kind: MaskKind
    confusion: ConfusionMatrix
    tags: MaskStatistics
    stuff: Counts
    images: int = 0
    labelled: int = 0
    agreement: TruthAgreement = field(default_factory=TruthAgreement)
    pixels: int = 0
    area: int = 0
    image_miou: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitResult:
    """Everything counted on one split.

    Args:
        split: name of the split.
        mask_counts: one per kind, in pipeline order.
        changed: share of pixels that differ between `before` and `after`, per image.
        before: earliest refined mask that the pictures compare, if there are two.
        after: latest one.
    """

    split: str
    mask_counts: list[MaskCounts]
    changed: dict[str, float]
    before: MaskKind | None
    after: MaskKind | None


def evaluate_split(
    store: ArtifactStore,
    truth: GroundTruth,
    facts: TruthFacts,
    kinds: Sequence[MaskKind],
    *,
    progress: Progress | None = None,
) -> SplitResult:
    """Count every kind of one split in one pass, so that each true mask is read once.

    Args:
        store: the artifacts.
        truth: the ground truth.
        facts: its names as class values.
        kinds: kinds of one split, at least one.
        progress: wrapper `(ids, description) -> iterable of the same ids`, such as `tqdm`.

    Returns:
        The counts of the split.

    Raises:
        MaskError: if a mask and its truth differ in size, or one of them holds an unknown value.
    """

    def read(kind: MaskKind, image_id: str, target: UInt8 | None) -> UInt8:
        size = None if target is None else (target.shape[0], target.shape[1])
        return read_labels(store, truth, kind, image_id, size=size)

    return count_masks(truth, facts, kinds, read, title=f"report {kinds[0].split}", progress=progress)


def count_masks(
    truth: GroundTruth,
    facts: TruthFacts,
    kinds: Sequence[MaskKind],
    read: MaskReader,
    *,
    title: str,
    progress: Progress | None = None,
) -> SplitResult:
    """Count masks from anywhere: the one evaluation behind report and `evaluate`.

    Args:
        truth: the ground truth.
        facts: its names as class values.
        kinds: kinds of one split, at least one.
        read: `(kind, image id, true mask or None) -> mask` of the size of the truth with known values, or None to leave
            this image out.
        title: shown with the progress.
        progress: wrapper `(ids, description) -> iterable of the same ids`, such as `tqdm`.

    Raises:
        MaskError: if a true mask holds an unknown value; and what `read` raises.
    """
    split = kinds[0].split
    before, after = compared_kinds(kinds)
    mask_counts = [_no_counts(kind, facts) for kind in kinds]
    changed: dict[str, float] = {}
    members = [set(kind.ids) for kind in kinds]
    ids = [image_id for image_id in truth.ids(split) if any(image_id in member for member in members)]
    for image_id in progress(ids, title) if progress else ids:
        sample = _Sample.load(truth, facts, split, image_id)
        masks: dict[str, UInt8] = {}
        for counts, member in zip(mask_counts, members, strict=True):
            mask = read(counts.kind, image_id, sample.mask) if image_id in member else None
            if mask is not None:
                masks[counts.kind.key] = mask
                _count(counts, mask, sample, facts)
        if before and after and before.key in masks and after.key in masks:
            changed[image_id] = float(np.mean(masks[before.key] != masks[after.key]))
    for counts in mask_counts:
        _check_truth(counts, facts, split)
    return SplitResult(split, mask_counts, changed, before, after)


def _check_truth(counts: MaskCounts, facts: TruthFacts, split: str) -> None:
    """Refuse truth that cannot be that of the tags: in the worst case every prediction would score 100.

    Raises:
        MaskError: see `data.files.TruthAgreement`.
    """
    if facts.offset:
        counts.agreement.check(split=split, tags=len(facts.names) - facts.offset, ignore_index=facts.ignore_index)


def compared_kinds(kinds: Sequence[MaskKind]) -> tuple[MaskKind | None, MaskKind | None]:
    """The two kinds that the pictures compare: the first masks and the last refresh (else the last kind)."""
    if len(kinds) < 2:
        return None, None
    before = next((kind for kind in kinds if not kind.is_cam), kinds[0])
    after = next((kind for kind in reversed(kinds) if kind.is_round), kinds[-1])
    return (before, after) if before != after else (kinds[0], kinds[-1])


@dataclass(frozen=True)
class _Sample:
    """Ground truth of one image: `mask` as read, `target` of the same values for counting, class values in words."""

    image_id: str
    tags: Tensor
    mask: UInt8 | None
    target: Tensor | None
    stuff: Counts | None
    tag_values: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()

    @staticmethod
    def load(truth: GroundTruth, facts: TruthFacts, split: str, image_id: str) -> _Sample:
        import torch

        tags = torch.zeros(1, len(facts.names) - facts.offset)
        tags[0, [value - facts.offset for value in truth.tags(split, image_id)]] = 1
        mask = truth.mask(split, image_id)
        if mask is None:
            return _Sample(image_id, tags, None, None, None)
        wrong = (mask >= len(facts.names)) & (mask != facts.ignore_index)
        if wrong.any():
            raise MaskError(
                f"True mask of {image_id!r} ({split}) holds {int(mask[wrong][0])}, which is neither a class "
                f"(0 to {len(facts.names) - 1}) nor {facts.ignore_index}. Repair the mask or the class list."
            )
        stuff = truth.stuff(split, image_id) if facts.stuff_names else None
        slots = None if stuff is None else _background_slots(stuff, mask, facts)
        values = frozenset(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()) - {facts.ignore_index}
        return _Sample(image_id, tags, mask, _to_tensor(mask), slots, frozenset(truth.tags(split, image_id)), values)


def _no_counts(kind: MaskKind, facts: TruthFacts) -> MaskCounts:
    from dhr_lightning.evaluation.metrics import BOUNDARY_RATIO, ConfusionMatrix, MaskStatistics

    classes, ignored = len(facts.names), facts.ignore_index
    return MaskCounts(
        kind,
        ConfusionMatrix(classes, ignore_index=ignored, boundary_ratio=BOUNDARY_RATIO),
        MaskStatistics(classes, offset=facts.offset, ignore_index=ignored, neighbours=facts.adjacent),
        np.zeros((len(facts.stuff_names), classes + 1), np.int64),
    )


def _to_tensor(mask: UInt8) -> Tensor:
    """Mask `(H, W)` -> `(1, H, W)` int64, a copy: files may give arrays that cannot be written to."""
    import torch

    return torch.from_numpy(mask.astype(np.int64))[None]


def _background_slots(stuff: UInt8, mask: UInt8, facts: TruthFacts) -> Counts:
    """Background material per pixel, the slot after the last one where it is unknown or an object covers it."""
    count = len(facts.stuff_names)
    known = np.minimum(stuff.astype(np.int64), count)
    return np.where(mask == 0, known, count) if facts.offset else known


def _count(counts: MaskCounts, mask: UInt8, sample: _Sample, facts: TruthFacts) -> None:
    from dhr_lightning.evaluation.metrics import joint_counts, scores

    classes, prediction = len(facts.names), _to_tensor(mask)
    counts.images += 1
    counts.pixels += mask.size
    counts.area += int(np.count_nonzero((mask >= facts.offset) & (mask < classes)))
    if sample.target is None:
        counts.tags.update(prediction, sample.tags)
        return
    joint = joint_counts(prediction, sample.target, num_classes=classes, ignore_index=facts.ignore_index)
    counts.tags.add(joint, sample.tags)
    counts.confusion.update(prediction, sample.target, joint)
    counts.labelled += 1
    counts.agreement.add(sample.tag_values, sample.values, offset=facts.offset)
    counts.image_miou[sample.image_id] = scores(joint[0, :classes]).miou
    if sample.stuff is not None:
        rows, slots = len(facts.stuff_names), classes + 1
        predicted = np.minimum(mask.astype(np.int64), classes)
        materials = np.bincount((sample.stuff * slots + predicted).ravel(), minlength=(rows + 1) * slots)
        counts.stuff += materials.reshape(rows + 1, slots)[:rows]
