"""Who is taken for whom: the confusion of the last masks of a split as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dhr_lightning.evaluation.counting import SplitResult
from dhr_lightning.evaluation.truth import TruthFacts
from dhr_lightning.reporting.tables import HeatCell
from dhr_lightning.reporting.verdict import percent

MOST_CLASSES = 24  # more would be too small to read; the rest has fewer mistakes
_MOST_PAIRS = 6
_SHOWN = 0.005  # share of a row below which a cell stays empty
_RIGHT, _WRONG = (13, 92, 90), (184, 74, 32)


@dataclass(frozen=True)
class ConfusionPicture:
    """Shares of the true pixels of each class by the class that the masks give them.

    Args:
        split: of the masks.
        label: what made the masks.
        columns: classes that the masks give, and `no class` where masks leave pixels out.
        rows: name of the true class and a cell for each column.
        pairs: the largest mistakes in words, by the number of their pixels.
        left_out: classes that are not shown because the others have more mistakes.
    """

    split: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    pairs: tuple[str, ...]
    left_out: int


def confusion_picture(result: SplitResult, facts: TruthFacts) -> ConfusionPicture | None:
    """Draw the confusion of the masks that the recipe ends with; `None` where there is no truth.

    Args:
        result: counts of a split.
        facts: names of the classes.
    """
    judged = [counts for counts in result.mask_counts if counts.labelled]
    if not judged:
        return None
    counts = next((one for one in judged if one.kind == result.after), judged[-1])
    matrix = counts.confusion.matrix.numpy()  # (C, C + 1) pixels, truth by prediction
    shown, left_out = _shown_classes(matrix)
    extra = matrix[:, -1].any()
    columns = [*shown, *([len(matrix)] if extra else [])]
    total = np.maximum(matrix.sum(1, keepdims=True), 1)
    shares = matrix / total
    names = [*facts.names, "no class"]
    rows = tuple(
        (names[truth], tuple(_cell(float(shares[truth, one]), right=truth == one) for one in columns))
        for truth in shown
    )
    titles = tuple(names[one] for one in columns)
    return ConfusionPicture(result.split, counts.kind.label, titles, rows, _pairs(matrix, shares, names), left_out)


def _shown_classes(matrix: np.ndarray) -> tuple[list[int], int]:
    """Classes that truth or masks show, of many those with the most mistaken pixels, in their own order."""
    square = matrix[:, :-1]
    mistakes = matrix.sum(1) + square.sum(0) - 2 * square.diagonal()
    present = np.flatnonzero(matrix.sum(1) + square.sum(0))
    kept = sorted(present.tolist(), key=lambda value: -mistakes[value])[:MOST_CLASSES]
    return sorted(kept), len(present) - len(kept)


def _pairs(matrix: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong[:, :-1], 0)
    order = np.argsort(wrong, axis=None)[::-1][:_MOST_PAIRS]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    return tuple(
        f"{percent(float(shares[truth, given]))} % of {names[truth]} taken for {names[given]}"
        for truth, given in places
        if wrong[truth, given]
    )


def _cell(share: float, *, right: bool) -> HeatCell:
    if share < _SHOWN:
        return HeatCell("")
    colour, strength = (_RIGHT, _WRONG)[not right], min(1.0, share if right else 2 * share)
    mixed = "#{:02x}{:02x}{:02x}".format(*(round(255 + strength * (one - 255)) for one in colour))
    return HeatCell(f"{100 * share:.0f}", mixed, "#ffffff" if strength > 0.55 else "#000000")


def confusion_pictures(results: Sequence[SplitResult], facts: TruthFacts) -> list[ConfusionPicture]:
    """Pictures of all splits that have truth."""
    pictures = (confusion_picture(result, facts) for result in results)
    return [picture for picture in pictures if picture is not None]
