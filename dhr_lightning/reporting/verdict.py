"""What the figures say, in one headline and one plain sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.evaluation.kinds import MaskKind

_NOTABLE_POINTS = 0.1
_BESIDE = "small classes erased beside a larger neighbour"


@dataclass(frozen=True)
class Verdict:
    """The words at the top of the page.

    Args:
        steps: (name, figure in percent) in pipeline order.
        measure: what the figure is and on which split.
        outcome: (name, figure, split) of each segmenter on other images.
        sentences: plain sentences about failure modes, may be empty.
    """

    steps: tuple[tuple[str, str], ...]
    measure: str
    outcome: tuple[tuple[str, str, str], ...]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The headline as one line of plain text."""
        ladder = " → ".join(f"{name} {figure}" for name, figure in self.steps)
        parts = [f"{ladder} {self.measure}"] if ladder else []
        parts += [f"{name} {figure} on {split}" for name, figure, split in self.outcome]
        return "; ".join(parts) or "No masks to judge yet"


def write_verdict(kinds: Sequence[MaskKind], figures: Mapping[str, Figures], *, split: str) -> Verdict:
    """Build the headline from the figures of the main steps.

    Args:
        kinds: every kind shown, in pipeline order.
        figures: their figures by key.
        split: split of the ladder.

    Returns:
        The verdict; without true masks it counts the tags that the masks keep instead of mIoU.
    """
    scored = any(figures[kind.key]["miou"] is not None for kind in kinds)
    ladder = [kind for kind in _milestones(kinds, split) if headline(figures[kind.key], scored=scored) is not None]
    steps = [(_short(kind), percent(headline(figures[kind.key], scored=scored))) for kind in ladder]
    outcome = [
        (kind.label, percent(headline(figures[kind.key], scored=scored)), kind.split)
        for kind in kinds
        if kind.is_prediction and kind.split != split and headline(figures[kind.key], scored=scored) is not None
    ]
    measure = f"{'mIoU' if scored else '% of tags kept'} on {split}"
    sentences = [] if scored or not kinds else ["There are no true masks, so these are figures that need none."]
    refined = [kind for kind in ladder if not kind.is_cam and not kind.is_prediction]
    if len(refined) > 1:
        sentences += _changes(refined[0], refined[-1], figures)
    return Verdict(tuple(steps), measure, tuple(outcome), tuple(sentences))


def headline(figure: Figures, *, scored: bool) -> float | None:
    """The figure that ranks the steps: mIoU, or the share of tags kept where no true masks exist."""
    if scored:
        return figure["miou"]
    missing = figure["missing_tag_rate"]
    return None if missing is None else 1 - missing


def percent(value: float | None) -> str:
    """A share as a number in percent with one decimal, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def _milestones(kinds: Sequence[MaskKind], split: str) -> list[MaskKind]:
    """Each step and the last mask refresh on the way of a split; predictions only if nothing else is there."""
    on_split = [kind for kind in kinds if kind.split == split and not kind.is_branch]
    rounds = [kind for kind in on_split if kind.is_round]
    steps = [kind for kind in on_split if not kind.is_round and not kind.is_prediction] + rounds[-1:]
    return steps or on_split


def _short(kind: MaskKind) -> str:
    return kind.short_label


def _changes(before: MaskKind, after: MaskKind, figures: Mapping[str, Figures]) -> list[str]:
    first, last = figures[before.key], figures[after.key]
    clauses = [
        _change(_BESIDE, first["vanished_adjacent_rate"], last["vanished_adjacent_rate"]),
        *(_change(_pair_words(pair), rate, last["background_rates"].get(pair)) for pair, rate in _worst_pair(first)),
        _gap(first, last),
    ]
    if first["miou"] is None:
        clauses.append(_change("tags without a single pixel", first["missing_tag_rate"], last["missing_tag_rate"]))
    told = [clause for clause in clauses if clause]
    if not told:
        return []
    joined = told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]
    return [f"From {_short(before)} to {_short(after)} masks, {joined}."]


def _worst_pair(figure: Figures) -> list[tuple[str, float]]:
    known = {pair: rate for pair, rate in figure["background_rates"].items() if rate is not None}
    return [max(known.items(), key=lambda item: item[1])] if known else []


def _pair_words(pair: str) -> str:
    stuff, name = pair.split("->")
    return f"{stuff} taken for {name}"


def _change(name: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if abs(before - after) * 100 < _NOTABLE_POINTS:
        return f"{name} stay at {percent(after)} %"
    return f"{name} {'fall' if after < before else 'rise'} from {percent(before)} % to {percent(after)} %"


def _gap(first: Figures, last: Figures) -> str:
    gaps = []
    for figure in (first, last):
        if figure["head_miou"] is None or figure["tail_miou"] is None:
            return ""
        gaps.append(100 * (figure["head_miou"] - figure["tail_miou"]))
    if min(gaps) < 0 or abs(gaps[0] - gaps[1]) < 1:
        return ""
    verb = "narrows" if gaps[1] < gaps[0] else "widens"
    return f"the gap between frequent and rare classes {verb} from {gaps[0]:.0f} to {gaps[1]:.0f} points"
