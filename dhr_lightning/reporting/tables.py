"""Figures arranged as chart bars and table cells, ready for the page template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.truth import TruthFacts
from dhr_lightning.reporting.verdict import headline, percent

_RAMP = ((0.0, (247, 232, 216)), (0.35, (240, 205, 150)), (0.65, (132, 190, 165)), (1.0, (13, 92, 90)))
_SHOWN_PAIRS = 2


@dataclass(frozen=True)
class Bar:
    """One bar of the ladder; positions in percent of the width.

    Args:
        label: name of the step.
        value: figure at the right.
        change: signed change to the previous step, may be empty.
        tone: `better`, `worse` or `same`.
        kept: width that the step shares with the previous one.
        end: where the longer of the two ends.
    """

    label: str
    value: str
    change: str
    tone: str
    kept: float
    end: float


@dataclass(frozen=True)
class Cell:
    """One table cell: figure, change to the row above and whether that is better."""

    text: str
    change: str = ""
    tone: str = "same"


@dataclass(frozen=True)
class HeatCell:
    """One coloured cell with a text colour that can be read on it."""

    text: str
    background: str = ""
    ink: str = ""


@dataclass(frozen=True)
class StepTable:
    """Failure modes of the steps of one split."""

    split: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class ClassRow:
    """One class of the per-class table."""

    name: str
    value: int
    images: int
    group: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class TimeBar:
    """Seconds of one step; `share` in percent of the longest."""

    label: str
    text: str
    share: float


def ladder(kinds: Sequence[MaskKind], figures: Mapping[str, Figures], *, chained: bool, scored: bool) -> list[Bar]:
    """Bars of one split.

    Args:
        kinds: kinds of the split, in pipeline order.
        figures: figures by key.
        chained: whether each step builds on the one before, so that the change is worth showing.
        scored: mIoU, or the share of tags kept where no true masks exist.
    """
    bars: list[Bar] = []
    previous: float | None = None
    for kind in kinds:
        value = headline(figures[kind.key], scored=scored)
        if value is None:
            continue
        before = previous if chained and previous is not None else value
        cell = _cell(value, previous if chained else None, up=True)
        low, high = sorted((value, before))
        bars.append(Bar(kind.label, cell.text, cell.change, cell.tone, round(100 * low, 2), round(100 * high, 2)))
        previous = previous if kind.is_branch else value
    return bars


def step_table(kinds: Sequence[MaskKind], figures: Mapping[str, Figures], *, chained: bool) -> StepTable:
    """Failure modes per step; a column without any figure is left out.

    Args:
        kinds: kinds of one split, at least one, in pipeline order.
        figures: figures by key.
        chained: whether changes to the step before are shown; branches of the pipeline are nobody's step before.
    """
    pairs = list(figures[kinds[0].key]["background_rates"])[:_SHOWN_PAIRS]
    getters: list[tuple[str, bool | None, Callable[[Figures], float | None]]] = [
        ("mIoU", True, lambda figure: figure["miou"]),
        ("Boundary IoU", True, lambda figure: figure["mboundary_iou"]),
        ("Vanished tags", False, lambda figure: figure["vanished_tag_rate"]),
        ("Vanished beside neighbour", False, lambda figure: figure["vanished_adjacent_rate"]),
        ("Tags without a pixel", False, lambda figure: figure["missing_tag_rate"]),
        ("Labelled area", None, lambda figure: figure["labelled_area"] if figure["miou"] is None else None),
        *((_arrow(pair), False, lambda figure, pair=pair: figure["background_rates"][pair]) for pair in pairs),
        ("Frequent classes", True, lambda figure: figure["head_miou"]),
        ("Rare classes", True, lambda figure: figure["tail_miou"]),
    ]
    used = [item for item in getters if any(item[2](figures[kind.key]) is not None for kind in kinds)]
    rows = []
    above: Figures | None = None
    for kind in kinds:
        cells = tuple(_cell(get(figures[kind.key]), get(above) if above else None, up=up) for _, up, get in used)
        rows.append((kind.label, cells))
        if chained and not kind.is_branch:
            above = figures[kind.key]
    return StepTable(kinds[0].split, tuple(name for name, _, _ in used), tuple(rows))


def class_table(kinds: Sequence[MaskKind], figures: Mapping[str, Figures], facts: TruthFacts) -> list[ClassRow]:
    """IoU of every class in every kind: background first, then from frequent to rare."""
    values = sorted(range(len(facts.names)), key=lambda value: (value >= facts.offset, -facts.tag_counts[value], value))
    groups = {value: "frequent" for value in facts.head} | {value: "rare" for value in facts.tail}
    return [
        ClassRow(
            name=facts.names[value],
            value=value,
            images=facts.tag_counts[value],
            group=groups.get(value, ""),
            cells=tuple(heat_cell(figures[kind.key]["iou"][facts.names[value]]) for kind in kinds),
        )
        for value in values
    ]


def time_bars(seconds: Mapping[str, float]) -> list[TimeBar]:
    """Seconds per step relative to the longest step."""
    longest = max(seconds.values(), default=0.0)
    scale = 100 / longest if longest else 0.0
    return [TimeBar(name, duration(value), round(scale * value, 2)) for name, value in seconds.items()]


def duration(seconds: float) -> str:
    """Seconds in words: `8.4 s`, `1 min 24 s`, `2 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def heat_cell(value: float | None) -> HeatCell:
    """Colour of a share in [0, 1]: pale sand (low) to deep green (high), black or white ink by contrast."""
    if value is None:
        return HeatCell(percent(None))
    upper = next(index for index in range(1, len(_RAMP)) if value <= _RAMP[index][0] or index == len(_RAMP) - 1)
    (start, low), (stop, high) = _RAMP[upper - 1], _RAMP[upper]
    part = min(max((value - start) / (stop - start), 0.0), 1.0)
    colour = tuple(round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    light = _luminance(colour)
    ink = "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"
    return HeatCell(percent(value), "#{:02x}{:02x}{:02x}".format(*colour), ink)


def _luminance(colour: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour. Source: WCAG 2.2, definition of relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _arrow(pair: str) -> str:
    stuff, name = pair.split("->")
    return f"{stuff} → {name}"


def _cell(value: float | None, above: float | None, *, up: bool | None) -> Cell:
    """A figure and its change; `up` says whether more is better, or `None` where neither is."""
    if value is None or above is None:
        return Cell(percent(value))
    points = round(100 * value, 1) - round(100 * above, 1)
    if abs(points) < 0.05:
        return Cell(percent(value), "±0")
    tone = "same" if up is None else "better" if (points > 0) == up else "worse"
    sign = "+" if points > 0 else "−"
    return Cell(percent(value), f"{sign}{abs(points):.1f}", tone)
