"""The report of one recipe, or of several side by side."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase

from dhr_lightning.artifacts.runs import read_state
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.gate import gate_notes
from dhr_lightning.evaluation.kinds import Entry, report_key
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan
from dhr_lightning.progress import track
from dhr_lightning.reporting.graph import GraphStep, RecipeGraph
from dhr_lightning.reporting.report import DatasetTruth, ReportParts, build_report


def report_folder(plan: RecipePlan) -> Path:
    """Where the report of a recipe lies."""
    name = re.sub(r"[^A-Za-z0-9_.+=-]", "_", plan.recipe.name)
    return plan.view.workspace / "reports" / plan.view.info.name / name


def write_recipe_report(plans: Sequence[RecipePlan], target: Path, *, images: int) -> None:
    """Judge the artifacts of recipes on one dataset and write `report.html` and `report.json` into `target`.

    Args:
        plans: one or more; steps that are equal are shown once.
        target: folder of the report.
        images: pictured images per split.
    """
    view, store = plans[0].view, plans[0].view.store
    entries = entries_of(plans)
    names = plans[0].recipe.name if len(plans) == 1 else f"{len(plans)} recipes side by side"
    parts = ReportParts(
        entries,
        title=f"{view.info.name}: {'recipe ' if len(plans) == 1 else ''}{names}",
        seconds=step_seconds(plans),
        notes=[
            *weights_notes(store, entries),
            *refinement_notes(store, entries),
            *gate_notes(store, {(one.address, one.split): one.step for one in entries}),
        ],
        graphs=[graph_of(plan, entries, title) for plan, title in zip(plans, titles(plans), strict=True)],
    )
    truth = DatasetTruth(view.info, view.root)
    build_report(store, truth, parts, split="train", output=target, max_images=images, progress=track)


def titles(plans: Sequence[RecipePlan]) -> list[str]:
    """Names of recipes in a report: several get a letter each, which stands before what is theirs alone."""
    names = [plan.recipe.name for plan in plans]
    return (
        names if len(names) == 1 else [f"{letter} {name}" for letter, name in zip(ascii_uppercase, names, strict=False)]
    )


def graph_of(plan: RecipePlan, entries: Sequence[Entry], title: str) -> RecipeGraph:
    """A recipe with the names that its steps have in a report."""
    names = {(entry.address, entry.split): entry for entry in entries}
    steps = []
    for step in by_depth(plan.steps):
        found = [names[output] for output in step.outputs() if output in names]
        keys = tuple(dict.fromkeys(report_key(one.step, one.address, one.split) for one in found))
        reads = tuple(dict.fromkeys(source for _, source in step.step.sources()))
        steps.append(GraphStep(step.name, step.step.use, reads, keys, step.seconds()))
    return RecipeGraph(title, tuple(steps))


def entries_of(plans: Sequence[RecipePlan]) -> list[Entry]:
    """Artifacts of recipes, the most refined last; what several have in common comes once, with a plain name."""
    shared = [{output for step in plan.steps for output in step.outputs()} for plan in plans]
    common = set.intersection(*shared)
    entries: dict[tuple[str, str], Entry] = {}
    for plan, title in zip(plans, titles(plans), strict=True):
        for step in by_depth(plan.steps):
            for address, split in step.outputs():
                prefix = "" if (address, split) in common else f"{title[0]} "
                entries.setdefault((address, split), _entry(step, address, split, prefix))
    return _told_apart(list(entries.values()))


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Several steps of one method are called by the names of their steps, too."""
    steps: dict[str, set[str]] = {}
    for entry in entries:
        steps.setdefault(entry.label, set()).add(entry.step)
    return [
        replace(entry, label=f"{entry.label} ({entry.step})") if len(steps[entry.label]) > 1 else entry
        for entry in entries
    ]


def by_depth(steps: Sequence[PlannedStep]) -> list[PlannedStep]:
    """Steps by how many others lie before them in the longest chain, so that the masks of the last one are judged.

    The order of a recipe's file says nothing of that: a baseline may stand behind the final segmenter.

    Args:
        steps: in an order in which sources come before what reads them.
    """
    depths: dict[str, int] = {}
    for step in steps:
        depths[step.name] = 1 + max(
            (depths[source] for _, source in step.step.sources() if source in depths), default=0
        )
    return sorted(steps, key=lambda step: depths[step.name])


def _entry(step: PlannedStep, address: str, split: str, prefix: str) -> Entry:
    if step.identity is None:
        return Entry(address, split, f"{prefix}{step.name}", f"{prefix}{step.name} (imported)", "imported masks")
    spec = step.identity.spec
    return Entry(address, split, f"{prefix}{step.name}", f"{prefix}{spec.label or spec.name}", spec.about)


def step_seconds(plans: Sequence[RecipePlan]) -> dict[str, float]:
    """Seconds of every fit and of every prediction, in order.

    One prediction writes all artifacts of its step, so it counts once; so does a fit that several steps share, at the
    first of them. Mask refreshes are part of their fit.
    """
    seconds: dict[str, float] = {}
    fits = set()
    for plan in plans:
        for step in plan.steps:
            if step.identity is None:
                continue
            state = read_state(step.identity.run_folder)
            if state.get("seconds") and step.identity.run_folder not in fits:
                fits.add(step.identity.run_folder)
                seconds[f"fit {step.name}"] = float(state["seconds"])
            for output in step.identity.outputs_of_prediction():
                manifest = plan.view.store.manifest(*output)
                if manifest is not None:
                    seconds[f"predict {step.name}"] = float(manifest.info.get("seconds", 0.0))
    return seconds


def weights_notes(store: ArtifactStore, entries: Sequence[Entry]) -> list[str]:
    """Whose features a recipe stands on, what supervised them, and their licence."""
    notes = []
    for entry in entries:
        manifest = store.manifest(entry.address, entry.split)
        info = manifest.info if manifest else {}
        if info.get("supervision"):
            words = (str(info.get("backbone")), info["supervision"], f"licence: {info.get('licence') or 'not stated'}")
            notes.append(f"{entry.step}: features of {', '.join(words)}.")
    return list(dict.fromkeys(notes))


def refinement_notes(store: ArtifactStore, entries: Sequence[Entry]) -> list[str]:
    """Which refinement made which masks."""
    used: dict[str, list[str]] = {}
    for entry in entries:
        manifest = store.manifest(entry.address, entry.split)
        name = manifest.info.get("refine", "none") if manifest else "none"
        if name != "none":
            used.setdefault(name, []).append(f"{entry.step}/{entry.split}")
    return [f"Refined with {name}: {', '.join(dict.fromkeys(kinds))}." for name, kinds in used.items()]
