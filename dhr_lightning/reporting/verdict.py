"""What the figures say, in one headline and one plain sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.evaluation.kinds import MaskKind

_NOTABLE_POINTS = 0.1
FEWEST_IMAGES = 20  # fewer give no figure that anybody should quote
_BESIDE = "small classes erased beside a larger neighbour"


@dataclass(frozen=True)
class Verdict:
    """The words at the top of the page.

    Args:
        steps: (name, figure in percent) in pipeline order.
        measure: what the figure is and on which split.
        outcome: (name, figure, split) of each segmenter on other images.
        sentences: plain sentences about failure modes, may be empty.
        without: the headline where there is no figure.
    """

    steps: tuple[tuple[str, str], ...]
    measure: str
    outcome: tuple[tuple[str, str, str], ...]
    sentences: tuple[str, ...]
    without: str = "No masks to judge yet"

    @property
    def text(self) -> str:
        """The headline as one line of plain text."""
        ladder = " → ".join(f"{name} {figure}" for name, figure in self.steps)
        parts = [f"{ladder} {self.measure}"] if ladder else []
        parts += [f"{name} {figure} on {split}" for name, figure, split in self.outcome]
        return "; ".join(parts) or self.without


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
    told = {kind.key for kind in kinds if scored or figures[kind.key]["images"] >= FEWEST_IMAGES}
    known = [kind for kind in kinds if headline(figures[kind.key], scored=scored) is not None]
    ladder = [kind for kind in _milestones(kinds, split) if kind in known and kind.key in told]
    steps = [(_short(kind), percent(headline(figures[kind.key], scored=scored))) for kind in ladder]
    outcome = [
        (kind.label, percent(headline(figures[kind.key], scored=scored)), kind.split)
        for kind in known
        if kind.is_prediction and kind.split != split and kind.key in told
    ]
    images = max((figures[kind.key]["images"] for kind in ladder), default=0)
    measure = f"mIoU on {split}" if scored else f"% of tags kept on the {images} images of {split}"
    sentences = [] if scored or not kinds else _without_truth(ladder, known, figures)
    refined = [kind for kind in ladder if not kind.is_cam and not kind.is_prediction]
    if len(refined) > 1:
        sentences += _changes(refined[0], refined[-1], figures)
    without = "Too few images for a headline" if known else Verdict.without
    return Verdict(tuple(steps), measure, tuple(outcome), tuple(sentences), without)


def _without_truth(ladder: Sequence[MaskKind], known: Sequence[MaskKind], figures: Mapping[str, Figures]) -> list[str]:
    """What the share of tags kept cannot see, and why there is none where images are few."""
    few = {kind.split: figures[kind.key]["images"] for kind in known if figures[kind.key]["images"] < FEWEST_IMAGES}
    areas = ", ".join(f"{_short(kind)} {percent(figures[kind.key]['labelled_area'])} %" for kind in ladder)
    sentences = [
        "There are no true masks. A tag is kept when a single pixel shows it: the figure grows when masks flood the "
        "image, and it cannot see whether they lie in the right place. Look at the pictures."
    ]
    sentences += [f"Labelled area: {areas}."] if areas else []
    return sentences + [f"{split} has {count} images, too few for a figure." for split, count in few.items()]


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
