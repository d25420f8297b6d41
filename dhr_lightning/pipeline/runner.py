"""Bring a recipe up to date: skip what is fresh, fit, predict, seal."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import yaml

from dhr_lightning.artifacts.kinds import round_number
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.manifest import digest_file
from dhr_lightning.artifacts.runs import (
    find_checkpoint,
    finished_checkpoint,
    next_version,
    read_state,
    usable_checkpoint,
    write_state,
)
from dhr_lightning.artifacts.store import Status
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline.forecast import tell_forecast
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan
from dhr_lightning.pipeline.recipe import RecipeStep
from dhr_lightning.pipeline.records import refuse_old_workspace, remember
from dhr_lightning.pipeline.space import refuse_small_disk
from dhr_lightning.pipeline.trial import refuse_unbuildable
from dhr_lightning.progress import duration
from dhr_lightning.provenance.identity import StepIdentity
from dhr_lightning.provenance.recorded import check_inputs
from dhr_lightning.provenance.start_checks import check_packages, check_trainers, check_weights
from dhr_lightning.provenance.views import DataView
from dhr_lightning.ranks import decided, ranks
from dhr_lightning.shards import Shard

log = logging.getLogger("dhr_lightning")


def run_plan(
    plan: RecipePlan,
    steps: Sequence[PlannedStep],
    *,
    title: str,
    force: Sequence[str] = (),
    foretell: bool | None = None,
    predict_last: bool = True,
) -> bool:
    """Bring some steps of a recipe up to date.

    Args:
        plan: the recipe.
        steps: those to run, in order.
        title: shown at the end.
        force: names of steps to make again.
        foretell: say first how long it will take; default: of photos of one's own.
        predict_last: whether the last step predicts after its fit; several jobs may do so afterwards, see `sharding`.

    Returns:
        Whether anything ran.

    Raises:
        DHRError: if an input is absent or stale, or anything else a user can repair.
    """
    start, ran = time.monotonic(), False
    decided(lambda: get_ready(plan, steps, foretell=foretell))
    for step in steps:
        if step.identity is None:
            continue
        restore_weights(plan, step.step, step.identity)
        needed = decided(partial(_needed, plan, step, forced=step.name in force))
        if needed is None:
            continue
        ran = True
        predicts = predict_last or step is not steps[-1]
        run_step(step.identity, force=step.name in force, refit=needed == "rounds", predicts=predicts)
    log.info("%s: %s", title, f"done in {duration(time.monotonic() - start)}" if ran else "up to date")
    return ran


def get_ready(plan: RecipePlan, steps: Sequence[PlannedStep], *, foretell: bool | None) -> None:
    """Refuse what cannot work before the long work, and say how long that will take."""
    refuse_old_workspace(plan.view)
    configs = {step.name: dict(step.identity.config) for step in steps if step.identity}
    check_weights(configs, in_recipe=True)
    check_packages(configs)
    check_trainers(configs)
    for step in steps:
        if step.identity is None:  # what cannot be made here is missed before the long work
            refuse_imports(step, step.statuses())
    pending = [step for step in steps if not all(status.fresh for status in step.statuses().values())]
    refuse_unbuildable(pending, plan.view.info.classes)
    refuse_small_disk(pending, plan.view.workspace)
    prepare(plan.view)
    if (plan.view.info.own_classes if foretell is None else foretell) and ranks().size == 1:
        tell_forecast(plan, steps, run_step)
    remember(plan)


def _needed(plan: RecipePlan, step: PlannedStep, *, forced: bool) -> str | None:
    """Why a step has to run: `rounds` if masks are missing that only a fit writes, else `files`; None if it has not."""
    statuses = step.statuses()
    if not forced and all(status.fresh for status in statuses.values()):
        return None
    for (address, split), status in statuses.items():
        if not status.fresh:
            log.info("%s: %s/%s is %s", step.name, address, split, status)
    if step.identity is not None:
        check_inputs(step.identity, advice=_advice(plan, step))
    rounds = any(not one.fresh for (address, _), one in statuses.items() if round_number(address) is not None)
    return "rounds" if rounds else "files"


def restore_weights(plan: RecipePlan, step: RecipeStep, identity: StepIdentity) -> None:
    """Fit again what is missing of the weights that a step starts from: the artifacts beside them may all be fresh."""
    for port, source in step.sources():
        origin = plan[source].identity
        if origin is None or not identity.spec.reads[port].weights:
            continue
        folder = origin.run_folder
        if decided(partial(_lost, origin, folder)):
            with _locked(folder):
                fit(origin, folder, again=False, refit=False)


def _lost(origin: StepIdentity, folder: Path) -> bool:
    """Whether a fit has finished whose weights are gone."""
    state = read_state(folder)
    lost = bool(state.get("fitted")) and finished_checkpoint(folder) is None
    return lost and state["digest"] == origin.fit_digest()


def _locked(folder: Path) -> AbstractContextManager[object]:
    """The lock on a folder of fits; of several processes the first one holds it."""
    return FolderLock(folder / ".lock") if ranks().rank == 0 else nullcontext()


def _advice(plan: RecipePlan, step: PlannedStep) -> Mapping[str, str]:
    """The command that makes each input."""
    return {port: plan.request.command("run", "--until", source) for port, source in step.step.sources()}


def refuse_imports(step: PlannedStep, statuses: Mapping[tuple[str, str], Status]) -> None:
    """Raise where imported artifacts cannot be used.

    Raises:
        ArtifactError: names them, and what to do.
    """
    if not statuses:
        raise ArtifactError(
            f"{step.name} uses {step.step.use}, but nothing was imported under this name into {step.view.store.root}. "
            f"Run `python -m dhr_lightning import KIND FOLDER --name {step.step.use.partition('/')[2]}`."
        )
    for (address, split), status in statuses.items():
        if not status.fresh:
            raise ArtifactError(f"{step.name} uses {address}/{split}, which is {status}.")


def prepare(view: DataView) -> None:
    """Check every file of a dataset once."""
    dropped = len(view.info.read(view.root, "train", view.info.classes)) - len(view.records("train"))
    if dropped:
        log.info("%s/train: %d images without tags are dropped (data.untagged: drop)", view.info.name, dropped)
    records = {split: view.records(split) for split in view.splits}
    check_dataset(view.store.root / view.store.dataset, records, view.info.classes)


def run_step(identity: StepIdentity, *, force: bool = False, refit: bool = False, predicts: bool = True) -> None:
    """Fit (or continue, or reuse a finished fit), then predict and seal.

    Args:
        identity: of the step.
        force: forget the artifacts there are, then fit from the beginning.
        refit: fit from the beginning if the fit has finished, because something that only a fit writes is missing.
        predicts: whether it predicts; otherwise it fits alone.
    """
    folder = identity.run_folder
    if identity.spec.fits:
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) if identity.spec.fits else nullcontext():  # artifacts have locks of their own
        if force:
            decided(partial(_forget, identity))
        checkpoint = fit(identity, folder, again=force, refit=refit) if identity.spec.fits else None
        if predicts and identity.outputs_of_prediction():
            predict(identity, checkpoint)


def predict(identity: StepIdentity, checkpoint: Path | None, *, shard: Shard | None = None) -> None:
    """Predict all images, or one job's share of them, which stays unsealed.

    Args:
        identity: of the step.
        checkpoint: of its fit, if it has one.
        shard: which job.
    """
    log.info("%s: predicting%s", identity.step, f" shard {shard}" if shard else "")
    weights = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    run = checkpoint.parents[1] if checkpoint else None
    _lightning(identity, "predict", *weights, run_dir=run, shard=shard)


def _forget(identity: StepIdentity) -> None:
    for output in identity.outputs():
        identity.store.forget(*output)


def fit(identity: StepIdentity, folder: Path, *, again: bool, refit: bool) -> Path | None:
    """Fit from the beginning, continue, or reuse a finished fit; returns its checkpoint.

    Args:
        identity: of the step.
        folder: of its runs.
        again: fit from the beginning whatever is there.
        refit: the same if the fit has finished.
    """
    kept, run, checkpoint = decided(lambda: _before_fit(identity, folder, again=again, refit=refit))
    if kept is not None:
        return kept
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    start = time.monotonic()
    _lightning(identity, "fit", *resume, run_dir=run)
    return decided(lambda: _after_fit(folder, run, time.monotonic() - start))


def _before_fit(
    identity: StepIdentity, folder: Path, *, again: bool, refit: bool
) -> tuple[Path | None, Path, Path | None]:
    """Weights of a finished fit to keep, or the folder of a run and the checkpoint that it continues from."""
    state, digest = read_state(folder), identity.fit_digest()
    if again or state.get("digest") != digest or (refit and state["fitted"]):
        state = {"digest": digest, "run": next_version(folder), "fitted": False}
        write_state(folder, state)
    run = folder / str(state["run"])
    if state["fitted"]:
        if (kept := finished_checkpoint(folder)) is not None:
            return kept, run, None
        log.warning(
            "%s: the weights that the finished fit left in %s are missing or not as they were; it goes on from the "
            "last epoch that is whole",
            identity.step,
            run,
        )
        state = {**state, "fitted": False, "weights": None}
        write_state(folder, state)
    checkpoint = usable_checkpoint(run)
    log.info("%s: %s", identity.step, f"continuing from {checkpoint}" if checkpoint else f"fitting, logs in {run}")
    return None, run, checkpoint


def _after_fit(folder: Path, run: Path, seconds: float) -> Path | None:
    """Write down that a fit has finished; returns its checkpoint."""
    state = read_state(folder)
    seconds += float(state.get("seconds", 0))
    final = find_checkpoint(run)
    weights = None if final is None else digest_file(final)
    write_state(folder, {**state, "fitted": True, "seconds": round(seconds, 1), "weights": weights})
    return final


def _lightning(
    identity: StepIdentity, command: str, *arguments: str, run_dir: Path | None, shard: Shard | None = None
) -> None:
    from dhr_lightning.cli import run_lightning

    config = yaml.safe_dump(dict(identity.config), sort_keys=False)
    run_lightning([command, "--config", config, *arguments], run_dir=run_dir, in_recipe=True, shard=shard)
