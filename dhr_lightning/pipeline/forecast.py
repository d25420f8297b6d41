"""How long a run will take and how much disk: its steps on a few photos, before the long work."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

from dhr_lightning.artifacts.kinds import round_number
from dhr_lightning.artifacts.layout import files_below
from dhr_lightning.errors import DHRError, run_command, set_run_command
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan, make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.progress import duration, human
from dhr_lightning.provenance.registered import registered

PHOTOS, EPOCHS = 16, 4
WORTH = 6 * PHOTOS  # images from which the few photos are a small part of the work
log = logging.getLogger("dhr_lightning")
RunStep = Callable[..., None]


class Cost(NamedTuple):
    """What a step takes: seconds, and bytes on disk without checkpoints."""

    seconds: float
    size: float


def tell_forecast(plan: RecipePlan, steps: Sequence[PlannedStep], run_step: RunStep) -> None:
    """Say how long the steps ahead will take, each timed on `PHOTOS` photos in a folder that is deleted afterwards.

    Nothing is said of fewer than `WORTH` images, and of recipes with imported steps.

    Args:
        plan: the recipe.
        steps: those that will run.
        run_step: fits and predicts one step, see `runner.run_step`.
    """
    ahead = [step for step in steps if not all(status.fresh for status in step.statuses().values())]
    images = len(plan.view.records("train"))
    if not ahead or any(step.identity is None for step in plan.steps) or images < WORTH:
        return
    log.info("%d steps on %d images: timing them on %d of the images", len(ahead), images, PHOTOS)
    start = time.monotonic()
    try:
        found = forecast(plan, [step.name for step in ahead], run_step)
    except DHRError as error:  # the run will say it where it happens, with what to do
        log.info("The time cannot be told in advance: %s", error)
        return
    total = Cost(*(sum(parts) for parts in zip(*found.values(), strict=True)))
    shown = ", ".join(f"{name} {duration(cost.seconds)}" for name, cost in found.items())
    spent = duration(time.monotonic() - start)
    log.info("about %s on this machine (%s), %s of disk", duration(total.seconds), shown, human(total.size))
    log.info("timed in %s; --no-forecast leaves it out", spent)


def forecast(plan: RecipePlan, names: Sequence[str], run_step: RunStep) -> dict[str, Cost]:
    """Cost of some steps of a recipe on all images, from the same steps on a few of them.

    Raises:
        DHRError: if a step refuses the few images.
    """
    command = run_command()
    with tempfile.TemporaryDirectory(prefix="dhr_forecast_") as folder, _quiet():
        try:
            small = make_plan(_few(plan, folder))
            wanted = _with_sources(plan, names)
            costs = {one.name: _cost(one, plan[one.name], run_step) for one in small.steps if one.name in wanted}
        finally:
            set_run_command(command)
    return {name: costs[name] for name in names}


def _few(plan: RecipePlan, folder: str) -> Request:
    """The same request on a few photos, a few epochs long, in a folder of its own."""
    request, overrides = plan.request, ["--data.limit", str(PHOTOS)]
    files = registered(request.workspace)
    for step in plan.steps:
        if step.identity is None:
            continue
        if step.identity.spec.fits:
            overrides += [f"--{step.name}.trainer.max_epochs", str(EPOCHS)]
        arguments = step.identity.arguments
        if isinstance(arguments.get("pretrained"), str):  # found in the workspace, which this folder is not
            overrides += [f"--{step.name}.pretrained", str(arguments["pretrained"])]
            overrides += [f"--{step.name}.backbone", str(arguments["backbone"])] if "backbone" in arguments else []
    weights = str(files[request.weights]) if request.weights in files else request.weights
    return replace(request, workspace=folder, weights=weights, overrides=(*request.overrides, *overrides))


def _with_sources(plan: RecipePlan, names: Sequence[str]) -> set[str]:
    """Steps and all that they read, fresh or not: of the few photos nothing is there yet."""
    found = set(names)
    for step in reversed(plan.steps):
        if step.name in found:
            found |= {source for _, source in step.step.sources()}
    return found


def _cost(step: PlannedStep, whole: PlannedStep, run_step: RunStep) -> Cost:
    """Run a step on the few photos; what all of them will take."""
    from dhr_lightning.callbacks.laps import timed  # imports torch, for which a plan need not wait

    if step.identity is None or whole.identity is None:
        return Cost(0, 0)
    with timed() as laps:
        run_step(step.identity)
    more = {split: _per_measured_image(whole, step, split) for split in whole.view.splits}
    made = {
        place: Cost(more[place[1]] * seconds, more[place[1]] * size)
        for place in step.outputs()
        for seconds, size in [_measured(step, *place)]
    }
    rounds = [cost for (address, _), cost in made.items() if round_number(address) is not None]
    predicted = [cost for (address, _), cost in made.items() if round_number(address) is None]
    times = sum(round_number(address) is not None for address, _ in whole.outputs())
    one_round = max(rounds, default=Cost(0, 0))
    seconds = times * one_round.seconds + max((cost.seconds for cost in predicted), default=0)
    size = times * one_round.size + sum(cost.size for cost in predicted)
    if laps.seconds:
        iterations = _iterations(whole.identity.config, len(whole.view.records("train")))
        seconds += median(laps.seconds[1:] or laps.seconds) * iterations
    return Cost(seconds, size)


def _per_measured_image(whole: PlannedStep, few: PlannedStep, split: str) -> float:
    """Images of a split for each one that was measured; 0 for a split without images."""
    images = len(whole.view.records(split))
    return images / len(few.view.records(split)) if images else 0.0


def _measured(step: PlannedStep, address: str, split: str) -> Cost:
    """What an output took; of a prediction that writes several, each says the seconds of all."""
    manifest = step.view.store.manifest(address, split)
    if manifest is None:
        return Cost(0, 0)
    files = files_below(step.view.store.folder(address, split))
    return Cost(float(manifest.info.get("seconds") or 0), sum(path.stat().st_size for path in files))


def _iterations(config: Mapping[str, Any], images: int) -> int:
    """Iterations of a fit, which epochs or steps may end; -1 of either is no end."""
    trainer = config.get("trainer") or {}
    each = math.ceil(images / int((config.get("data") or {}).get("batch_size") or 16))
    limit = trainer.get("limit_train_batches")
    each = each if limit is None else min(each, limit if isinstance(limit, int) else int(limit * each))
    epochs, steps = int(trainer.get("max_epochs") or -1), int(trainer.get("max_steps") or -1)
    ends = [end for end in (each * epochs, steps) if end > 0]
    return min(ends, default=0)


@contextmanager
def _quiet() -> Iterator[None]:
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
