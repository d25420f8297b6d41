"""A stage: check inputs, skip what is fresh, fit, predict, seal."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.layout import round_kind
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.manifest import Manifest, digest_config
from dhr_lightning.artifacts.store import Status
from dhr_lightning.commands import write_run_report
from dhr_lightning.config import check_stage_config, data_file, dataset_argument, own_overrides, resolve
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.errors import ConfigError
from dhr_lightning.progress import configure_logging, duration, exit_status
from dhr_lightning.provenance import identity
from dhr_lightning.provenance.imported import imported_status, reason_to_leave_out, refuse_stale_imports
from dhr_lightning.provenance.recorded import STEPS, check_inputs
from dhr_lightning.provenance.start_checks import (
    NO_BACKGROUND,
    can_download,
    check_background,
    check_weights,
    filled_from,
    reason_impossible,
)
from dhr_lightning.request import Request, Stage, Step, parse_request

log = logging.getLogger("dhr_lightning")


@dataclass
class Plan:
    """A step with its resolved configuration, and everything that follows from it without importing torch."""

    step: Step
    recipe: dict[str, Any]
    config: dict[str, Any]

    def __post_init__(self) -> None:
        self.info, self.root, self.store = identity.dataset_of(self.config)
        self.task = identity.task_name(self.config)
        self._records: dict[str, list[Record]] = {}

    @property
    def run_folder(self) -> Path:
        """Where Lightning logs the versions of this step."""
        return Path(self.config["data"].get("workspace", ".")) / "runs" / self.info.name / self.step.name

    def records(self, split: str) -> list[Record]:
        """Images of a split that are used."""
        if split not in self._records:
            self._records[split] = identity.usable_records(self.config, split)
        return self._records[split]

    def outputs(self) -> list[tuple[str, str]]:
        """Every `(kind, split)` that this step makes."""
        rounds = [(round_kind(k), "train") for k in range(len(identity.refresh_epochs(self.config)))]
        return rounds + identity.written_artifacts(self.config)

    def describe(self, kind: str, split: str) -> Manifest:
        """The manifest that an output would have today; the weights are not known yet."""
        splits = {"train"} if kind.startswith("dhr_mask") else {"train", split}
        records = {name: self.records(name) for name in splits}
        return identity.describe_artifact(self.config, kind, split, records=records, store=self.store)

    def status(self, kind: str, split: str) -> Status:
        """Fresh, stale (why), partial or absent."""
        imported = imported_status(self.config, self.store, kind, split)
        if imported is not None:
            return imported
        ids = [record.id for record in self.records(split)]
        return self.store.status(kind, split, expected=self.describe(kind, split), ids=ids)

    def reason_to_leave_out(self, later: Sequence["Plan"]) -> str | None:
        """Why this step need not run because of an import, or `None`; `later` are the steps after it."""
        return reason_to_leave_out(self.config, self.store, self.outputs(), [plan.config for plan in later])

    def digest(self) -> str:
        """Identity of the run: what its weights depend on, so no validation or test image."""
        identity = self.describe(self.outputs()[0][0], "train")
        return digest_config({"config": identity.config, "inputs": dict(identity.inputs)})


def plan_steps(stage: Stage, request: Request) -> list[Plan]:
    """Resolve every step of a stage.

    Args:
        stage: the stage.
        request: what the command line asks for.
    """
    builtin = request.dataset == "microworld"
    overlays = request.overlays if request.overlays is not None else ("quickstart.yaml",) if builtin else ()
    known = {*STEPS, *(step.name for step in stage.steps)}
    unknown = set(request.chosen) - known  # a step of another stage is passed over: one command line serves all stages
    if unknown:
        raise ConfigError(
            f"Unknown step {sorted(unknown)[0]!r} in --config. Steps: {', '.join(s.name for s in stage.steps)}."
        )
    plans = []
    for step in stage.steps:
        default = step.builtin if builtin and step.builtin else step.config
        paths = [request.chosen.get(step.name, default), data_file(request.dataset), *overlays]
        own = own_overrides(request.overrides, step.name, sorted(known))
        config = resolve(paths, own)
        check_stage_config(config)
        if not identity.dataset_of(config)[0].classes.has_background:
            paths.insert(2, NO_BACKGROUND)
            config = resolve(paths, own)
        if request.download and can_download(config):
            own = [*own, "--model.init_args.pretrained", "true"]
            config = resolve(paths, own)
        elif request.download and filled_from(config):
            log.info("%s: encoder from %s, no weights to download", step.name, filled_from(config))
        plans.append(Plan(step, {"configs": paths, "overrides": own}, config))
    return plans


def run_stage(stage: Stage, request: Request) -> None:
    """Bring every step of a stage up to date.

    Args:
        stage: the stage.
        request: what the command line asks for.

    Raises:
        DHRError: if an input is absent or stale, or anything else a user can repair.
    """
    plans, force = startable(plan_steps(stage, request), force=request.force), request.force
    prepare(plans[0])
    start, ran = time.monotonic(), False
    for place, plan in enumerate(plans):
        statuses = {output: plan.status(*output) for output in plan.outputs()}
        if not force and all(status.fresh for status in statuses.values()):
            continue
        left_out = None if force else plan.reason_to_leave_out(plans[place + 1 :])
        if left_out:
            refuse_stale_imports(plan.store, statuses)
            log.info("%s: left out, %s", plan.step.name, left_out)
            continue
        ran = True
        for (kind, split), status in statuses.items():
            if not status.fresh:
                log.info("%s: %s/%s is %s", stage.name, kind, split, status)
        dataset = "" if plan.info.prepare else f" DATASET={dataset_argument(plan.recipe['configs'][1])}"
        check_inputs(plan.config, plan.store, step=plan.step.name, dataset=dataset)
        rounds_lost = any(kind.startswith("dhr_mask") and not status.fresh for (kind, _), status in statuses.items())
        run_step(plan, force=force, refit=rounds_lost)
    if stage.report:
        write_report(plans[-1], again=ran)
    log.info("%s: %s", stage.name, f"done in {duration(time.monotonic() - start)}" if ran else "up to date")


def startable(plans: Sequence[Plan], *, force: bool) -> list[Plan]:
    """The steps that can run on this dataset.

    Args:
        plans: steps of a stage.
        force: also run steps that an import would leave out.

    Raises:
        DHRError: if a step that would run starts from masks that cannot exist, or from random weights on photos.
    """
    kept = []
    for plan in plans:
        reason = reason_impossible(plan.config)
        if reason:
            log.info("%s: left out, %s", plan.step.name, reason)
        else:
            kept.append(plan)
    running = [plan for k, plan in enumerate(kept) if force or not plan.reason_to_leave_out(kept[k + 1 :])]
    for plan in running:
        check_background(plan.config, step=plan.step.name)
    check_weights({plan.step.name: plan.config for plan in running}, in_stage=True)
    return kept


def prepare(plan: Plan) -> None:
    """Make the built-in dataset if needed, then check every file once."""
    if plan.info.prepare is not None:
        plan.info.prepare(plan.root, plan.config["data"].get("options") or {})
    dropped = len(plan.info.read(plan.root, "train", plan.info.classes)) - len(plan.records("train"))
    if dropped:
        log.info("%s/train: %d images without tags are dropped (data.untagged: drop)", plan.info.name, dropped)
    records = {split: plan.records(split) for split in plan.info.splits(plan.root)}
    check_dataset(plan.store.root / plan.store.dataset, records, plan.info.classes)


def write_report(plan: Plan, *, again: bool) -> None:
    """Write the report of everything on disk, if masks were made or it is not there."""
    workspace = Path(plan.config["data"].get("workspace", "."))
    target = workspace / "reports" / plan.info.name
    if again or not (target / "report.html").is_file():
        write_run_report(plan.info, plan.root, workspace, target, images=8)


def run_step(plan: Plan, *, force: bool = False, refit: bool = False) -> None:
    """Fit (or continue, or reuse a finished fit), then predict and seal.

    Args:
        plan: the step.
        force: forget the artifacts there are, then fit from the beginning.
        refit: fit from the beginning if the fit has finished, because something that only a fit writes is missing.
    """
    from dhr_lightning.callbacks.checkpoints import find_checkpoint, next_version
    from dhr_lightning.cli import run_lightning

    folder, digest = plan.run_folder, plan.digest()
    folder.mkdir(parents=True, exist_ok=True)
    configs = [argument for path in plan.recipe["configs"] for argument in ("--config", path)]
    with FolderLock(folder / ".lock"):
        state_path = folder / "state.json"
        state: Mapping[str, Any] = read_json(state_path) if state_path.is_file() else {}
        if force:
            for output in plan.outputs():
                plan.store.forget(*output)
        if force or state.get("digest") != digest or (refit and state["fitted"]):
            state = {"digest": digest, "run": str(next_version(folder)), "fitted": False}
            write_json(state_path, state)
        run = Path(str(state["run"]))
        checkpoint = find_checkpoint(run)
        if not state["fitted"] or checkpoint is None:
            resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
            log.info(
                "%s: %s", plan.step.name, f"continuing from {checkpoint}" if checkpoint else f"fitting, logs in {run}"
            )
            start = time.monotonic()
            run_lightning(["fit", *configs, *plan.recipe["overrides"], *resume], run_dir=run)
            seconds = float(state.get("seconds", 0)) + time.monotonic() - start
            write_json(state_path, {**state, "fitted": True, "seconds": round(seconds, 1)})
            checkpoint = find_checkpoint(run)
        log.info("%s: predicting", plan.step.name)
        run_lightning(["predict", *configs, *plan.recipe["overrides"], "--ckpt_path", str(checkpoint)], run_dir=run)


def stage_main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """Command line of a stage file.

    Returns:
        Exit status: 0 done or up to date, 2 an error that the user can repair.
    """
    configure_logging()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run_stage(stage, parse_request(stage, given)))
