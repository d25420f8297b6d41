"""One pass over a split: integer counts of every kind of mask against the ground truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import MaskError
from dhr_lightning.reporting.kinds import MaskKind
from dhr_lightning.reporting.masks import read_labels
from dhr_lightning.reporting.truth import GroundTruth, TruthFacts, UInt8

VANISHED_SHARE = 0.1
Counts = npt.NDArray[np.int64]
Progress = Callable[[Sequence[str], str], Iterable[str]]


@dataclass
class Tally:
    """Integer counts of one kind on one split; C classes plus one slot for "no class".

    Args:
        kind: what was counted.
        matrix: `(C + 1, C + 1)` pixels, true class by predicted class. The last row holds pixels whose truth is
            ignored, the last column pixels without a predicted class.
        stuff: `(S, C + 1)` pixels of each background material by predicted class; only where the truth is background.
        tags: (image, tag) pairs of all images.
        missing: those of them without a single pixel in the mask.
        pairs: (image, tag) pairs whose class has true pixels.
        vanished: those of them that keep less than a tenth of their true pixels.
        adjacent: pairs whose class stands next to its large neighbour.
        adjacent_vanished: those of them that vanished.
        images: images counted.
        labelled: images with a true mask.
        image_miou: mean IoU per image, over the classes present in truth or mask.
    """

    kind: MaskKind
    matrix: Counts
    stuff: Counts
    tags: int = 0
    missing: int = 0
    pairs: int = 0
    vanished: int = 0
    adjacent: int = 0
    adjacent_vanished: int = 0
    images: int = 0
    labelled: int = 0
    image_miou: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitResult:
    """Everything counted on one split.

    Args:
        split: name of the split.
        tallies: one per kind, in pipeline order.
        changed: share of pixels that differ between `before` and `after`, per image.
        before: earliest refined mask that the pictures compare, if there are two.
        after: latest one.
    """

    split: str
    tallies: list[Tally]
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
        MaskError: if a mask and its truth differ in size, or the truth holds an unknown value.
    """
    split = kinds[0].split
    before, after = compared_kinds(kinds)
    tallies = [_empty_tally(kind, facts) for kind in kinds]
    changed: dict[str, float] = {}
    members = [set(kind.ids) for kind in kinds]
    ids = [image_id for image_id in truth.ids(split) if any(image_id in member for member in members)]
    for image_id in progress(ids, f"report {split}") if progress else ids:
        sample = _Sample.load(truth, facts, split, image_id)
        masks: dict[str, UInt8] = {}
        for tally, member in zip(tallies, members, strict=True):
            if image_id in member:
                masks[tally.kind.kind] = mask = read_labels(store, truth, tally.kind, image_id, size=sample.size)
                _count(tally, mask, sample, facts)
        if before and after and before.kind in masks and after.kind in masks:
            changed[image_id] = float(np.mean(masks[before.kind] != masks[after.kind]))
    return SplitResult(split, tallies, changed, before, after)


def compared_kinds(kinds: Sequence[MaskKind]) -> tuple[MaskKind | None, MaskKind | None]:
    """The two kinds that the pictures compare: base mask (else the first) and last DHR round (else the last)."""
    if len(kinds) < 2:
        return None, None
    before = next((kind for kind in kinds if kind.kind == "base_mask"), kinds[0])
    after = next((kind for kind in reversed(kinds) if kind.is_dhr), kinds[-1])
    return (before, after) if before != after else (kinds[0], kinds[-1])


@dataclass(frozen=True)
class _Sample:
    """Ground truth of one image, with every value mapped to a slot of the count matrices."""

    image_id: str
    size: tuple[int, int] | None
    tags: npt.NDArray[np.int64]
    minor: npt.NDArray[np.int64]
    target: Counts | None
    stuff: Counts | None

    @staticmethod
    def load(truth: GroundTruth, facts: TruthFacts, split: str, image_id: str) -> "_Sample":
        tags = truth.tags(split, image_id)
        minor = sorted({small for small, large in facts.adjacent if small in tags and large in tags})
        mask = truth.mask(split, image_id)
        stuff = truth.stuff(split, image_id) if mask is not None and facts.stuff_names else None
        if mask is not None:
            wrong = (mask >= len(facts.names)) & (mask != facts.ignore_index)
            if wrong.any():
                raise MaskError(
                    f"True mask of {image_id!r} ({split}) holds {int(mask[wrong][0])}, which is neither a class "
                    f"(0 to {len(facts.names) - 1}) nor {facts.ignore_index}. Repair the mask or the class list."
                )
        return _Sample(
            image_id=image_id,
            size=None if mask is None else (mask.shape[0], mask.shape[1]),
            tags=np.array(sorted(tags), np.int64),
            minor=np.array(minor, np.int64),
            target=None if mask is None else _slots(len(facts.names))[mask],
            stuff=None if stuff is None or mask is None else _background_slots(stuff, mask, facts),
        )


def _empty_tally(kind: MaskKind, facts: TruthFacts) -> Tally:
    slots = len(facts.names) + 1
    return Tally(kind, np.zeros((slots, slots), np.int64), np.zeros((len(facts.stuff_names), slots), np.int64))


@lru_cache(maxsize=8)
def _slots(num_classes: int) -> Counts:
    """Table `(256,)` from a mask value to its slot; everything that is no class goes to the last one."""
    return np.minimum(np.arange(256), num_classes)


def _background_slots(stuff: UInt8, mask: UInt8, facts: TruthFacts) -> Counts:
    """Background material per pixel, the slot after the last one where it is unknown or an object covers it."""
    count = len(facts.stuff_names)
    known = np.minimum(stuff.astype(np.int64), count)
    return np.where(mask == 0, known, count) if facts.offset else known


def _count(tally: Tally, mask: UInt8, sample: _Sample, facts: TruthFacts) -> None:
    slots = len(facts.names) + 1
    predicted = _slots(len(facts.names))[mask]
    areas = np.bincount(predicted.ravel(), minlength=slots)
    tally.images += 1
    tally.tags += len(sample.tags)
    tally.missing += int((areas[sample.tags] == 0).sum())
    if sample.target is None:
        return
    joint = np.bincount((sample.target * slots + predicted).ravel(), minlength=slots**2).reshape(slots, slots)
    tally.matrix += joint
    tally.labelled += 1
    tally.image_miou[sample.image_id] = mean_or_nan(intersection_over_union(joint))
    true, kept = joint.sum(axis=1), joint.diagonal()
    pairs, vanished = _vanished(sample.tags, true, kept)
    tally.pairs, tally.vanished = tally.pairs + pairs, tally.vanished + vanished
    pairs, vanished = _vanished(sample.minor, true, kept)
    tally.adjacent, tally.adjacent_vanished = tally.adjacent + pairs, tally.adjacent_vanished + vanished
    if sample.stuff is not None:
        rows = len(facts.stuff_names)
        materials = np.bincount((sample.stuff * slots + predicted).ravel(), minlength=(rows + 1) * slots)
        tally.stuff += materials.reshape(rows + 1, slots)[:rows]


def _vanished(values: Counts, true: Counts, kept: Counts) -> tuple[int, int]:
    """How many of the classes have true pixels, and how many of those kept less than a tenth of them."""
    visible = values[true[values] > 0]
    return len(visible), int((kept[visible] < VANISHED_SHARE * true[visible]).sum())


def intersection_over_union(matrix: Counts) -> npt.NDArray[np.float64]:
    """IoU `(C,)` of a `(C + 1, C + 1)` count matrix; NaN for a class in neither truth nor mask."""
    hit = matrix.diagonal()[:-1].astype(np.float64)
    union = matrix[:-1].sum(axis=1) + matrix[:-1, :-1].sum(axis=0) - hit
    iou: npt.NDArray[np.float64] = np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)
    return iou


def mean_or_nan(values: npt.NDArray[np.float64]) -> float:
    """Mean of the values that are numbers; NaN, without a warning, if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
