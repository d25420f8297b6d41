"""The commands `status` and `gc`."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import Status
from dhr_lightning.data.gate import Gate
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
from dhr_lightning.pipeline.records import forget_recipe, garbage, refuse_old_workspace, remembered, remove
from dhr_lightning.pipeline.request import Request
from dhr_lightning.pipeline.verify import verified, verify_photos, verify_weights
from dhr_lightning.progress import human
from dhr_lightning.provenance.views import DataView

log = logging.getLogger("dhr_lightning")


def other_request(request: Request, name: str) -> Request:
    """The request of another recipe on the same data: one that ran here, by its name in `status`, or any other."""
    store = DataView(request.data_section()["data"]).store
    known = {one["recipe"]: one["command"] for one in remembered(store)}
    if name in known:
        return replace(split_request(known[name]), data=request.data, root=request.root, workspace=request.workspace)
    return Request(name, request.data, request.root, request.workspace, request.overlays, overrides=request.overrides)


def first_request(request: Request) -> Request:
    """A request whose recipe may be named as `status` shows it, with what was swapped and dropped."""
    changed = request.swaps or request.drops or request.overrides or request.overlays
    return request if changed or request.recipe is None else other_request(request, request.recipe)


def show_status(request: Request, *, verify: bool = False) -> int:
    """Show the artifacts of the recipe that is named, or of every recipe that ran; returns the exit status.

    Args:
        request: names the data, and a recipe if only one is wanted.
        verify: read every file, and the photos.
    """
    view = DataView(request.data_section()["data"])
    refuse_old_workspace(view)
    named = request.recipe is not None or request.swaps or request.drops
    names = [one["recipe"] for one in remembered(view.store)]
    requests = [request] if named or not names else [other_request(request, name) for name in names]
    photos = verify_photos(view, view.splits) if verify else []
    states = [status for one in requests for status in _show_recipe(make_plan(one), verify=verify)]
    for line in photos:
        log.warning("%s", line)
    return int(bool(photos) or any(status.state in ("stale", "partial", "damaged") for status in states))


def _show_recipe(plan: RecipePlan, *, verify: bool) -> list[Status]:
    log.info("recipe %s on %s", plan.recipe.name, plan.view.info.name)
    states: list[Status] = []
    for step in plan.steps:
        rows = step.statuses()
        if verify:
            rows = verified(step, rows)
            if (lost := verify_weights(step)) is not None:
                log.info("  %-12s %s", step.name, lost)
                states.append(Status("damaged", lost))
        for (address, split), status in rows.items():
            manifest = plan.view.store.manifest(address, split) if status.fresh else None
            log.info("  %-12s %s/%s  %s%s", step.name, address, split, status, _facts(manifest))
        states += rows.values()
    if any(not status.fresh for status in states):
        log.info("  run `%s`", plan.request.command("run"))
    return states


def _facts(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    source = "imported" if "imported" in manifest.settings else f"refine {manifest.info.get('refine', 'none')}"
    gate = Gate.read(manifest)
    verdict = f"; {gate.verdict()}" if gate else ""
    return f"  {manifest.count} images, {manifest.info.get('created', '')}, {source}{verdict}"


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        return False


def collect_garbage(view: DataView, *, forget: Sequence[str], yes: bool) -> int:
    """List what no recipe needs, ask, and remove it; returns the exit status.

    Args:
        view: the dataset.
        forget: recipes that are not needed any more.
        yes: do not ask.
    """
    for name in forget:
        if not forget_recipe(view.store, name):
            log.warning("no recipe %r ran here", name)
    items = garbage(view)
    for item in items:
        log.info("%10s  %s", human(item.size), item.folder)
    if not items:
        log.info("nothing to remove")
        return 0
    total = human(sum(item.size for item in items))
    if not yes and not _agreed(f"Remove {len(items)} folders, {total}? [y/N] "):
        log.info("nothing removed; --yes removes without asking")
        return 1
    remove(items, below=view.workspace)
    log.info("removed %s", total)
    return 0
