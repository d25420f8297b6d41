"""The page: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.sweep import Sweep
from dhr_lightning.evaluation.truth import GroundTruth, TruthFacts
from dhr_lightning.reporting.confusions import ConfusionPicture
from dhr_lightning.reporting.graph import BOX, Comparison, Drawing
from dhr_lightning.reporting.pictures import Gallery
from dhr_lightning.reporting.tables import class_table, duration, ladder, step_table, time_bars
from dhr_lightning.reporting.verdict import Verdict, percent

GLOSSARY = (
    (
        "truth",
        "IoU, mIoU",
        "Pixels of a class in both truth and mask, divided by those in either, over the whole split; mIoU is the mean.",
    ),
    ("truth", "Boundary IoU", "mIoU of the pixels near the contours: within 2 % of the image diagonal."),
    ("truth", "Vanished tags", "(Image, tag) pairs whose class keeps less than a tenth of its true pixels."),
    ("adjacent", "Vanished beside neighbour", "The same for small classes next to a large one: {adjacent}."),
    ("", "Tags without a pixel", "(Image, tag) pairs whose class has no pixel in the mask. Needs no true mask."),
    ("stuff", "{pair}", "Share of the true background of one material that the mask gives to a class."),
    ("groups", "Frequent, rare classes", "mIoU over {head}, and over {tail}."),
    ("", "Pixels changed", "Share of an image's pixels whose class differs between the two masks named."),
)


@dataclass(frozen=True)
class PageContent:
    """Everything the page shows.

    Args:
        title: heading.
        split: split of the ladder.
        verdict: the words on top.
        kinds: every kind shown, in pipeline order.
        figures: their figures.
        galleries: pictures per split.
        seconds: duration of each step.
        notes: remarks for the reader.
        sweep: oracle curve of the background score, where there is ground truth.
        drawings: the recipes as pictures.
        comparison: several recipes side by side.
        confusions: who is taken for whom, by split.
    """

    title: str
    split: str
    verdict: Verdict
    kinds: Sequence[MaskKind]
    figures: Mapping[str, Figures]
    galleries: Mapping[str, Sequence[Gallery]]
    seconds: Mapping[str, float]
    notes: Sequence[str]
    sweep: Sweep | None = None
    drawings: Sequence[Drawing] = ()
    comparison: Comparison | None = None
    confusions: Sequence[ConfusionPicture] = ()


def render_page(content: PageContent, truth: GroundTruth, facts: TruthFacts) -> str:
    """Fill the template.

    Args:
        content: what to show.
        truth: gives dataset name and colours.
        facts: names of the ground truth.

    Returns:
        A complete HTML document without any reference to another file.
    """
    figures = content.figures
    by_split = {name: list(kinds) for name, kinds in groupby(content.kinds, key=lambda kind: kind.split)}
    scored = any(figure["miou"] is not None for figure in figures.values())
    labelled = [kind for kind in content.kinds if figures[kind.key]["miou"] is not None]
    pairs = next((list(figure["background_rates"]) for figure in figures.values()), [])
    environment = _environment()
    return environment.get_template("report.html").render(
        css=Markup(environment.get_template("report.css").render()),
        content=content,
        box=BOX,
        dataset=truth.dataset,
        scored=scored,
        charts=[
            (name, ladder(kinds, figures, chained=name == content.split and len(content.drawings) < 2, scored=scored))
            for name, kinds in by_split.items()
        ],
        tables=[
            step_table(kinds, figures, chained=name == content.split and len(content.drawings) < 2)
            for name, kinds in by_split.items()
        ],
        class_columns=labelled,
        class_splits=[(name, sum(kind in labelled for kind in kinds)) for name, kinds in by_split.items()],
        class_rows=class_table(labelled, figures, facts) if labelled else [],
        mean_cells=[percent(figures[kind.key]["miou"]) for kind in labelled],
        times=time_bars(content.seconds),
        total=duration(sum(content.seconds.values())),
        legends={split: _legend(galleries, truth) for split, galleries in content.galleries.items()},
        colours=_colours(truth),
        names=facts.names,
        has_background=truth.classes.has_background,
        meanings=_grouped([(kind.short_label, kind.meaning) for kind in content.kinds]),
        glossary=_glossary(facts, pairs=pairs, scored=scored),
        protocols=_protocols(by_split, figures),
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("dhr_lightning.reporting", "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def _colours(truth: GroundTruth) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in truth.classes.palette.tolist()]


def _legend(galleries: Sequence[Gallery], truth: GroundTruth) -> list[tuple[str, int]]:
    seen = sorted(set().union(*(gallery.values for gallery in galleries)))
    names = truth.classes.names
    return [(names[value] if value < len(names) else "no class, or not scored", value) for value in seen]


def _glossary(facts: TruthFacts, *, pairs: Sequence[str], scored: bool) -> list[tuple[str, str]]:
    words = {
        "adjacent": ", ".join(f"{facts.names[small]} with {facts.names[large]}" for small, large in facts.adjacent),
        "head": ", ".join(facts.names[value] for value in facts.head),
        "tail": ", ".join(facts.names[value] for value in facts.tail),
        "pair": pairs[0].replace("->", " → ") + ", and the like" if pairs else "",
    }
    known = {"": True, "truth": scored}
    known |= {"adjacent": scored and bool(facts.adjacent), "stuff": scored and bool(pairs)}
    known |= {"groups": scored and bool(facts.head) and bool(facts.tail)}
    return [(term.format(**words), text.format(**words)) for need, term, text in GLOSSARY if known[need]]


def _protocols(by_split: Mapping[str, Sequence[MaskKind]], figures: Mapping[str, Figures]) -> list[tuple[str, str]]:
    """What all masks of a split have in common, once; then what is particular to some."""
    found: list[tuple[str, str]] = []
    for split, kinds in by_split.items():
        words = {kind.label: figures[kind.key]["protocol"].split("; ") for kind in kinds}
        first = next(iter(words.values()))
        common = [one for one in first if all(one in others for others in words.values())]
        if common:
            found.append((f"All on {split}", "; ".join(common)))
        own = [(label, "; ".join(one for one in parts if one not in common)) for label, parts in words.items()]
        found += _grouped([(label, text) for label, text in own if text])
    return found


def _grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join the names that share a text, in the order of their first appearance."""
    names: dict[str, list[str]] = {}
    for name, text in pairs:
        if name not in names.setdefault(text, []):
            names[text].append(name)
    return [(", ".join(group), text) for text, group in names.items()]
