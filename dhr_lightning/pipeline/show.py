"""A plan as a table: step, method, state, what it reads, and how long it took last time."""

import logging
from collections.abc import Sequence

from dhr_lightning.artifacts.store import Status
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan
from dhr_lightning.pipeline.records import remembered
from dhr_lightning.progress import duration

log = logging.getLogger("dhr_lightning")
_WORST = ("fresh", "partial", "stale", "absent")


def show_plan(plan: RecipePlan, steps: Sequence[PlannedStep]) -> None:
    """Log the table."""
    rows = [("step", "method", "state", "reads", "last time")]
    details = []
    for step in steps:
        state, reason = step_state(plan, step)
        reads = ", ".join(f"{port} <- {source}" for port, source in step.step.reads.items()) or "images and tags"
        rows.append((step.name, step.step.use, state, reads, last_seconds(step)))
        if reason:
            details.append(f"{step.name}: {reason}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    log.info("recipe %s on %s (%s)", plan.recipe.name, plan.view.info.name, plan.recipe.about)
    for row in rows:
        log.info("  %s", "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for detail in details:
        log.info("  %s", detail)


def step_state(plan: RecipePlan, step: PlannedStep) -> tuple[str, str]:
    """The worst state of a step's outputs, and the reason."""
    statuses = step.statuses()
    if not statuses:
        return "absent", "nothing was imported under this name"
    output, worst = max(statuses.items(), key=lambda item: _WORST.index(item[1].state))
    if worst.state == "absent" and step.identity is not None:
        worst = _changed(plan, step, output) or worst
    return worst.state, worst.reason


def _changed(plan: RecipePlan, step: PlannedStep, output: tuple[str, str]) -> Status | None:
    """Where this recipe has been run with other settings: stale, with what changed."""
    if step.identity is None:
        return None
    store = plan.view.store
    (address, split), kind = output, output[0].split("/")[2]
    for one in remembered(store):
        if one["recipe"] != plan.recipe.name:
            continue
        for before in (one["steps"].get(step.name) or {}).get("outputs", ()):
            place, _, where = before.rpartition("/")
            manifest = store.manifest(place, where) if place.split("/")[2] == kind and where == split else None
            if manifest is not None:
                return Status("stale", _in_words(manifest.changes_to(step.identity.describe(address, split))))
    return None


def _in_words(changes: Sequence[str]) -> str:
    """Changes without addresses: what a step reads lies elsewhere as soon as it is made in another way."""
    own = [text for text in changes if not text.startswith(("address ", "input "))]
    read = [text for text in changes if text.startswith("input ") and not text.startswith("input data/")]
    data = [text for text in changes if text.startswith("input data/")]
    return "; ".join([*own, *data, *(["what it reads is made in another way"] if read else [])])


def last_seconds(step: PlannedStep) -> str:
    """How long fit and prediction took, in words."""
    seconds = step.seconds()
    return "imported" if step.identity is None else duration(seconds) if seconds else "-"
