"""Prediction by an array of jobs: each writes its share of the images, and one declares the whole complete."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.runs import finished_checkpoint, read_state
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan
from dhr_lightning.pipeline.runner import get_ready, predict, run_step
from dhr_lightning.provenance.identity import StepIdentity
from dhr_lightning.shards import Shard

log = logging.getLogger("dhr_lightning")


def run_shard(plan: RecipePlan, steps: Sequence[PlannedStep], shard: Shard) -> None:
    """Predict one job's share of the images of the last step, and leave it unsealed.

    Args:
        plan: the recipe.
        steps: the last one and all it needs, which must be there.
        shard: which job.

    Raises:
        ConfigError: if the last step predicts nothing.
        ArtifactError: if something before is missing, or the fit of the last step has not finished.
    """
    *before, last = steps
    identity = _predicting(last)
    get_ready(plan, [last], foretell=False)
    _check_before(plan, before)
    weights = _weights(plan, identity)
    if all(status.fresh for status in last.statuses().values()):
        log.info("%s: up to date", last.name)
        return
    predict(identity, weights, shard=shard)
    command = plan.request.command("seal", "--until", last.name)
    log.info("%s: shard %s is written; after the last one: %s", last.name, shard, command)


def seal(plan: RecipePlan, step: PlannedStep) -> None:
    """Declare complete what an array of jobs has written.

    Args:
        plan: the recipe.
        step: which they predicted.

    Raises:
        ArtifactError: if a file is missing, and of which jobs; nothing is computed in their place.
        LockError: if a job is still writing.
    """
    identity = _predicting(step)
    statuses = {output: step.status(*output) for output in identity.outputs_of_prediction()}
    if all(status.fresh for status in statuses.values()):
        log.info("%s: up to date", step.name)
        return
    _weights(plan, identity)
    for (address, split), status in statuses.items():
        if not status.fresh:
            _refuse_others(step, address, split, identity.describe(address, split))
            _refuse_missing(plan, step, address, split)
    run_step(identity)


def _predicting(step: PlannedStep) -> StepIdentity:
    if step.identity is None or not step.identity.outputs_of_prediction():
        raise ConfigError(f"{step.name} predicts nothing that jobs could share. Name another step with --until.")
    return step.identity


def _check_before(plan: RecipePlan, steps: Sequence[PlannedStep]) -> None:
    for step in steps:
        for (address, split), status in step.statuses().items():
            if not status.fresh:
                raise ArtifactError(
                    f"{address}/{split} of {step.name} is {status}. One job must make what the others read, first: "
                    f"`{plan.request.command('run', '--until', step.name)}`."
                )


def _weights(plan: RecipePlan, identity: StepIdentity) -> Path | None:
    """Weights of the finished fit; None for a step without one."""
    if not identity.spec.fits:
        return None
    state = read_state(identity.run_folder)
    checkpoint = finished_checkpoint(identity.run_folder)
    if checkpoint is None or not state.get("fitted") or state.get("digest") != identity.fit_digest():
        raise ArtifactError(
            f"The fit of {identity.step} has not finished, so that its jobs have no weights. One job must fit first: "
            f"`{plan.request.command('run', '--until', identity.step, '--no-predict')}`."
        )
    return checkpoint


def _refuse_others(step: PlannedStep, address: str, split: str, expected: Manifest) -> None:
    """Raise if the files there are not what jobs with today's settings wrote: to seal them would make them again."""
    folder = step.view.store.folder(address, split)
    begun = folder / layout.PARTIAL
    changes = Manifest.load(begun).changes_to(expected) if begun.exists() else ["no job has begun it"]
    if changes:
        raise ArtifactError(
            f"{folder} does not hold what jobs with these settings write: {'; '.join(changes)}. Run all shards again."
        )


def _refuse_missing(plan: RecipePlan, step: PlannedStep, address: str, split: str) -> None:
    """Raise if an image has no file; says which jobs were to write it."""
    store, ids = step.view.store, [record.id for record in step.view.records(split)]
    folder = store.folder(address, split)
    missing = [place for place, one in enumerate(ids) if not layout.has_content(store.path(address, split, one))]
    if not missing:
        return
    counts = {shard.count for shard in layout.shards_begun(folder)}
    jobs = ""
    if len(counts) == 1:
        (count,) = counts
        numbers = sorted({place % count + 1 for place in missing})
        jobs = f" of shard {', '.join(f'{number}/{count}' for number in numbers)}"
    raise ArtifactError(
        f"{len(missing)} of {len(ids)} files{jobs} are missing in {folder}, first {ids[missing[0]]!r}. Run these jobs "
        f"again, or let this one make the rest: `{plan.request.command('run', '--until', step.name)}`."
    )
