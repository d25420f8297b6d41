"""The report of one run: artifacts compared with the ground truth, as one HTML page and one JSON file."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import write_bytes, write_json
from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import SPLITS
from dhr_lightning.errors import run_command
from dhr_lightning.evaluation.counting import Progress, SplitResult, evaluate_split
from dhr_lightning.evaluation.figures import Figures, all_figures
from dhr_lightning.evaluation.kinds import Entry, MaskKind, find_kinds
from dhr_lightning.evaluation.masks import difference
from dhr_lightning.evaluation.sweep import Sweep, sweep_background
from dhr_lightning.evaluation.truth import DatasetTruth, GroundTruth, TruthFacts, resolve_truth
from dhr_lightning.reporting.confusions import confusion_pictures
from dhr_lightning.reporting.graph import Comparison, RecipeGraph, compare_recipes, draw_graph
from dhr_lightning.reporting.html import PageContent, render_page
from dhr_lightning.reporting.pictures import Drawn, build_galleries, picture_columns
from dhr_lightning.reporting.verdict import write_verdict

__all__ = ["DatasetTruth", "GroundTruth", "Progress", "ReportParts", "build_report"]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportParts:
    """What a report is about.

    Args:
        entries: artifacts of the recipes; every complete one that holds masks is judged.
        title: heading of the page.
        seconds: duration of each step, in the order to show.
        notes: remarks for the reader.
        graphs: the recipes, drawn with the figures of their steps; several are also compared.
    """

    entries: Sequence[Entry]
    title: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    graphs: Sequence[RecipeGraph] = ()


def build_report(
    store: ArtifactStore,
    truth: GroundTruth,
    parts: ReportParts,
    *,
    split: str,
    output: Path,
    max_images: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge every mask in the store and write `report.html` and `report.json`.

    Args:
        store: the artifacts.
        truth: ground truth; where it has no masks only label-free figures are reported, and the page says so.
        parts: what the report is about.
        split: split of the ladder on top, where each step is compared with the one before.
        output: folder for the two files; made if absent.
        max_images: pictured images per split.
        progress: wrapper `(ids, description) -> iterable of the same ids`, such as `tqdm`.

    Returns:
        What `report.json` holds: `schema`, `dataset`, `title`, `split`, `verdict`, `units`, `metrics` by
        `<step>[/round_KK]/<split>`, `sweep` of the background score or null, `comparison` of several recipes or null,
        `seconds`, `notes`. A figure that cannot be known is null.

    Raises:
        ArtifactError: if a mask of a complete kind cannot be read.
        MaskError: if a mask and its truth differ in size, or the truth holds an unknown value.
    """
    facts, graphs = resolve_truth(truth), parts.graphs
    kinds, remarks = _kinds(store, truth, parts.entries, split)
    results = _evaluate(store, truth, kinds, facts=facts, progress=progress)
    figures = all_figures(results, facts)
    remarks += _remarks(results)
    main = {key for step in graphs[0].steps for key in step.keys} if len(graphs) > 1 else {kind.key for kind in kinds}
    verdict = write_verdict([kind for kind in kinds if kind.key in main], figures, split=split)
    galleries = {
        result.split: build_galleries(store, truth, result, _drawn(result, parts.entries), max_images=max_images)
        for result in results
    }
    sweep = _sweep(store, truth, facts, kinds, split=split)
    scored = any(figure["miou"] is not None for figure in figures.values())
    content = PageContent(
        parts.title, split, verdict, kinds, figures, galleries, parts.seconds, [*parts.notes, *remarks], sweep,
        drawings=[draw_graph(graph, figures, scored=scored) for graph in graphs],
        confusions=confusion_pictures(results, facts),
        comparison=_comparison(store, graphs, kinds, figures, scored=scored),
    )  # fmt: skip
    summary = _summary(content, truth)
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / "report.html", render_page(content, truth, facts).encode())
    write_json(output / "report.json", summary)
    _logger.info("Report: %s", output / "report.html")
    return summary


def _comparison(
    store: ArtifactStore,
    graphs: Sequence[RecipeGraph],
    kinds: Sequence[MaskKind],
    figures: Mapping[str, Figures],
    *,
    scored: bool,
) -> Comparison | None:
    """Several recipes side by side; how their last training masks differ is read from the files."""
    if len(graphs) < 2:
        return None
    masks = {kind.key: kind for kind in kinds if kind.split == "train" and not kind.is_cam}
    last = {
        graph.title: next(
            (masks[key] for step in reversed(graph.steps) for key in reversed(step.keys) if key in masks), None
        )
        for graph in graphs
    }
    first = last[graphs[0].title]
    changed = {title: difference(store, first, kind) if first and kind else None for title, kind in last.items()}
    return compare_recipes(graphs, figures, changed, scored=scored)


def _summary(content: PageContent, truth: GroundTruth) -> dict[str, Any]:
    return {
        "schema": 1,
        "dataset": truth.dataset,
        "title": content.title,
        "split": content.split,
        "verdict": " ".join((f"{content.verdict.text}.", *content.verdict.sentences)),
        "units": "every rate, IoU and accuracy is a share in [0, 1]; seconds are seconds",
        "metrics": dict(content.figures),
        "sweep": content.sweep.record() if content.sweep else None,
        "comparison": asdict(content.comparison) if content.comparison else None,
        "seconds": dict(content.seconds),
        "notes": list(content.notes),
    }


def _kinds(
    store: ArtifactStore, truth: GroundTruth, entries: Sequence[Entry], split: str
) -> tuple[list[MaskKind], list[str]]:
    on_disk = {entry.split for entry in entries if store.folder(entry.address, entry.split).is_dir()}
    splits = [name for name in dict.fromkeys((split, *SPLITS)) if name in on_disk]
    kinds, remarks = find_kinds(store, entries, {name: truth.ids(name) for name in splits}, splits=splits)
    if not kinds:
        remarks.append(f"There is no complete mask, so there is nothing to judge. Run `{run_command()}` first.")
    return kinds, remarks


def _evaluate(
    store: ArtifactStore, truth: GroundTruth, kinds: Sequence[MaskKind], *, facts: TruthFacts, progress: Progress | None
) -> list[SplitResult]:
    splits = dict.fromkeys(kind.split for kind in kinds)
    return [
        evaluate_split(store, truth, facts, [kind for kind in kinds if kind.split == split], progress=progress)
        for split in splits
    ]


def _drawn(result: SplitResult, entries: Sequence[Entry]) -> Drawn:
    maps = {
        one.step: one.address for one in entries if kind_of(one.address).role == "map" and one.split == result.split
    }
    return Drawn(picture_columns([counts.kind for counts in result.mask_counts]), maps)


def _sweep(
    store: ArtifactStore, truth: GroundTruth, facts: TruthFacts, kinds: Sequence[MaskKind], *, split: str
) -> Sweep | None:
    maps = next((kind for kind in kinds if kind.is_cam and kind.split == split), None)
    return sweep_background(store, truth, facts, maps) if maps else None


def _remarks(results: Sequence[SplitResult]) -> list[str]:
    bare = [result.split for result in results if all(counts.labelled == 0 for counts in result.mask_counts)]
    return [f"No true masks on {split}: only label-free figures are reported there." for split in bare]
