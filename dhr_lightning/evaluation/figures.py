"""From counts to the figures of `report.json`; a figure that cannot be known is null, never a guess."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from dhr_lightning.evaluation.counting import MaskCounts, SplitResult
from dhr_lightning.evaluation.truth import TruthFacts

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_BACKGROUND_RATE = 0.05


class Figures(TypedDict):
    """Figures of one kind on one split; all are shares in [0, 1] unless the name says otherwise."""

    miou: float | None
    iou: dict[str, float | None]
    fpr: float | None
    fnr: float | None
    pixel_accuracy: float | None
    mboundary_iou: float | None
    boundary_iou: dict[str, float | None]
    vanished_tag_rate: float | None
    vanished_adjacent_rate: float | None
    missing_tag_rate: float | None
    labelled_area: float | None
    background_rates: dict[str, float | None]
    head_miou: float | None
    tail_miou: float | None
    images: int
    labelled_images: int
    protocol: str


def all_figures(results: Sequence[SplitResult], facts: TruthFacts) -> dict[str, Figures]:
    """Figures of every kind, in the order they are shown.

    Args:
        results: counts per split.
        facts: names of the ground truth.

    Returns:
        Figures by `<kind>[/round_KK]/<split>`. All kinds list the same background pairs: those the ground truth
        names, and any other whose rate reaches 5 % in some kind, worst first.
    """
    mask_counts = [counts for result in results for counts in result.mask_counts]
    pairs = _background_pairs(mask_counts, facts)
    return {counts.kind.key: _figures(counts, facts, pairs) for counts in mask_counts}


def _figures(counts: MaskCounts, facts: TruthFacts, pairs: Sequence[tuple[int, int]]) -> Figures:
    found, lost = counts.confusion.scores(), counts.tags.compute()
    return Figures(
        miou=_known(found.miou),
        iou=_by_name(found.iou, facts),
        fpr=_known(found.mfpr),
        fnr=_known(found.mfnr),
        pixel_accuracy=_known(found.pixel_accuracy),
        mboundary_iou=_known(found.mboundary_iou),
        boundary_iou=_by_name(found.boundary_iou, facts),
        vanished_tag_rate=_known(lost.vanished_share),
        vanished_adjacent_rate=_known(lost.vanished_beside_share),
        missing_tag_rate=_known(lost.empty_share),
        labelled_area=_share(counts.area, counts.pixels),
        background_rates={_pair_name(pair, facts): _background_rate(counts, pair) for pair in pairs},
        head_miou=_known(float(found.iou[list(facts.head)].nanmean())),
        tail_miou=_known(float(found.iou[list(facts.tail)].nanmean())),
        images=counts.images,
        labelled_images=counts.labelled,
        protocol=_protocol(counts, facts),
    )


def _background_pairs(mask_counts: Sequence[MaskCounts], facts: TruthFacts) -> list[tuple[int, int]]:
    found: dict[tuple[int, int], float] = {}
    for counts in mask_counts:
        total = np.maximum(counts.stuff.sum(axis=1, keepdims=True), 1)
        rates = counts.stuff[:, :-1] / total  # (S, C)
        for stuff, value in np.argwhere(rates >= SHOWN_BACKGROUND_RATE).tolist():
            if value >= facts.offset:
                found[stuff, value] = max(found.get((stuff, value), 0.0), float(rates[stuff, value]))
    named = list(facts.background_pairs)
    return named + [pair for pair in sorted(found, key=lambda pair: -found[pair]) if pair not in named]


def _background_rate(counts: MaskCounts, pair: tuple[int, int]) -> float | None:
    return _share(int(counts.stuff[pair]), int(counts.stuff[pair[0]].sum()))


def _pair_name(pair: tuple[int, int], facts: TruthFacts) -> str:
    return f"{facts.stuff_names[pair[0]]}->{facts.names[pair[1]]}"


def _protocol(counts: MaskCounts, facts: TruthFacts) -> str:
    words = [f"split {counts.kind.split}: {counts.images} images"]
    if counts.labelled == 0:
        words.append("no true masks, so only figures that need none")
    else:
        words[0] += "" if counts.labelled == counts.images else f", {counts.labelled} of them with a true mask"
        words.append(f"pixels whose truth is {facts.ignore_index} are not scored")
        words.append("a pixel without a predicted class counts as a miss")
        words.append(f"one matrix of integer pixel counts over the split, mean over {_class_count(facts)}")
    words.append(counts.kind.inference_info)
    if counts.kind.is_cam:
        score = f"a constant background score of {counts.kind.threshold:.3g} ({counts.kind.threshold_rule})"
        rule = f"against {score}" if facts.offset else "without background"
        words.append(f"class of the largest activation {rule}, at full image size")
    return "; ".join(words)


def _class_count(facts: TruthFacts) -> str:
    return f"{len(facts.names)} classes{' including background' if facts.offset else ''} (absent ones left out)"


def _by_name(values: "Tensor", facts: TruthFacts) -> dict[str, float | None]:
    return {name: _known(value) for name, value in zip(facts.names, values.tolist(), strict=True)}


def _share(part: int, total: int) -> float | None:
    return part / total if total else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
