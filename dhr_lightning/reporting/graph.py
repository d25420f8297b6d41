"""A recipe as a picture: its steps as boxes, from left to right, each with its figure and its time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhr_lightning.evaluation.figures import Figures
from dhr_lightning.progress import duration
from dhr_lightning.reporting.verdict import headline, percent

BOX = (158, 66)  # width and height in pixels
_LETTERS = (8, 7)  # width of a letter of the name and of the method in pixels
GAP = (46, 20)  # between columns and between rows


@dataclass(frozen=True)
class GraphStep:
    """One step.

    Args:
        name: within the recipe.
        method: that does it.
        reads: names of the steps that it reads.
        keys: names of its masks in `report.json`, the one that counts last.
        seconds: of fit and prediction; None if unknown.
    """

    name: str
    method: str
    reads: tuple[str, ...]
    keys: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class RecipeGraph:
    """A recipe.

    Args:
        title: its name.
        steps: each after what it reads.
    """

    title: str
    steps: tuple[GraphStep, ...]


@dataclass(frozen=True)
class Box:
    """A step as it is drawn: upper left corner in pixels, and its lines of text.

    `beside` says whether the method fits behind the name.
    """

    x: int
    y: int
    name: str
    method: str
    figure: str
    time: str
    beside: bool


@dataclass(frozen=True)
class Drawing:
    """Boxes, and arrows as `(x1, y1, x2, y2)` in pixels."""

    title: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int, int, int], ...]


def draw_graph(graph: RecipeGraph, figures: Mapping[str, Figures], *, scored: bool) -> Drawing:
    """Place every step to the right of what it reads.

    Args:
        graph: the recipe.
        figures: of its masks, by key.
        scored: whether the figure is mIoU, else the share of tags kept.
    """
    columns: dict[str, int] = {}
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for step in graph.steps:
        column = columns[step.name] = 1 + max((columns[name] for name in step.reads), default=-1)
        row = rows[column] = rows.get(column, -1) + 1
        places[step.name] = (column * (BOX[0] + GAP[0]), row * (BOX[1] + GAP[1]))
    boxes = tuple(
        Box(*places[step.name], step.name, step.method, _figure(step, figures, scored), _time(step), _beside(step))
        for step in graph.steps
    )
    arrows = tuple(
        (
            places[name][0] + BOX[0],
            places[name][1] + BOX[1] // 2,
            places[step.name][0],
            places[step.name][1] + BOX[1] // 2,
        )
        for step in graph.steps
        for name in step.reads
    )
    width = max(box.x for box in boxes) + BOX[0]
    return Drawing(graph.title, width, max(box.y for box in boxes) + BOX[1], boxes, arrows)


def _figure(step: GraphStep, figures: Mapping[str, Figures], scored: bool) -> str:
    """The last figure of each split, such as `82.3 train, 81.6 val`."""
    last: dict[str, str] = {}
    for key in step.keys:
        value = headline(figures[key], scored=scored) if key in figures else None
        if value is not None:
            last[key.rpartition("/")[2]] = percent(value)
    return ", ".join(f"{value} {split}" for split, value in last.items())


def _beside(step: GraphStep) -> bool:
    return _LETTERS[0] * len(step.name) + _LETTERS[1] * len(step.method) < BOX[0] - 30


def _time(step: GraphStep) -> str:
    return "" if step.seconds is None else duration(step.seconds)


@dataclass(frozen=True)
class Comparison:
    """Recipes side by side.

    Args:
        columns: names of the figures.
        rows: name of the recipe and its cells.
        note: what the figures are.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    note: str


def compare_recipes(
    graphs: Sequence[RecipeGraph], figures: Mapping[str, Figures], changed: Mapping[str, float | None], *, scored: bool
) -> Comparison:
    """One row for each recipe: its last masks, its last segmenter, what differs from the first recipe, and the time.

    Args:
        graphs: the recipes.
        figures: of all masks, by key.
        changed: by title, the share of pixels of the last masks unlike those of the first recipe, in [0, 1].
        scored: whether the figure is mIoU, else the share of tags kept.
    """
    rows = []
    for graph in graphs:
        train = [figures[key] for step in graph.steps for key in step.keys if key in figures and key.endswith("/train")]
        other = [figures[key] for step in graph.steps for key in step.keys if key in figures and key.endswith("/val")]
        masks, segmenter = (found[-1] if found else None for found in (train, other))
        seconds = sum(step.seconds or 0 for step in graph.steps)
        cells = (
            percent(headline(masks, scored=scored) if masks else None),
            percent(masks["vanished_tag_rate"] if masks else None),
            percent(headline(segmenter, scored=scored) if segmenter else None),
            percent(changed.get(graph.title)),
            duration(seconds),
        )
        rows.append((graph.title, cells))
    figure = "mIoU" if scored else "tags kept"
    columns = (f"masks, {figure}", "vanished tags", f"segmenter, {figure}", "pixels unlike the first recipe's", "time")
    return Comparison(
        columns,
        tuple(rows),
        "Last masks on train, last segmenter on val, in percent; time of all steps, shared ones too.",
    )
