"""The command `run`, and the stages, which are named parts of a recipe."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan, make_plan
from dhr_lightning.pipeline.request import BUILTIN, Request, add_options, split_overrides, to_request
from dhr_lightning.pipeline.runner import run_plan
from dhr_lightning.pipeline.sharding import run_shard, seal
from dhr_lightning.pipeline.show import show_plan
from dhr_lightning.progress import configure_logging, exit_status
from dhr_lightning.ranks import decided, join, part
from dhr_lightning.shards import read_shard
from dhr_lightning.steps import did_you_mean

log = logging.getLogger("dhr_lightning")


@dataclass(frozen=True)
class Stage:
    """A named part of a recipe.

    Args:
        name: `stage1_cam`, ...
        about: one line for `--help`.
        steps: names of its steps; a recipe may lack some.
    """

    name: str
    about: str
    steps: tuple[str, ...]


def run(arguments: Sequence[str]) -> int:
    """The command `run`."""
    return _run(arguments, stage=None)


def stage_main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """Command line of a stage file.

    Returns:
        Exit status: 0 done or up to date, 2 an error that the user can repair.
    """
    configure_logging()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(given, stage=stage))


def _run(arguments: Sequence[str], *, stage: Stage | None) -> int:
    words, overrides = split_overrides(arguments)
    options = _parser(stage).parse_args(words)
    if stage is not None and options.recipe_option:
        options.recipe = options.recipe_option
    request = to_request(options, overrides)
    if stage is not None and request.recipe is None and request.default_recipe() == "frozen":
        request = replace(request, recipe="dhr")  # whose steps the stages are
    elif stage is None and request.recipe is None and request.data != BUILTIN:
        log.info("recipe %s: %s; another one by its name", *request.choose_recipe())
    if not options.dry:
        meet()
    plan = make_plan(request) if options.dry else prepared_plan(request)
    steps = chosen_steps(plan, until=options.until, stage=stage)
    _check_parts(options, steps)
    force = _forced(options.force, steps)
    if options.dry:
        show_plan(plan, steps)
        return 0
    if options.shard:
        run_shard(plan, steps, read_shard(options.shard))
        part()
        return 0
    title = stage.name if stage else f"run {plan.recipe.name}"
    predicts = not options.no_predict
    ran = run_plan(plan, steps, title=title, force=force, foretell=options.forecast, predict_last=predicts)
    if predicts and set(plan.recipe.outputs) & {step.name for step in steps}:
        decided(lambda: write_reports(plan, again=ran))
    part()
    return 0


def seal_command(arguments: Sequence[str]) -> int:
    """The command `seal`."""
    words, overrides = split_overrides(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m dhr_lightning seal", allow_abbrev=False,
        description="Declare complete what jobs with --shard have written; nothing is computed in their place.",
    )  # fmt: skip
    add_options(parser)
    parser.add_argument("--until", metavar="STEP", required=True, help="the step that they predicted")
    options = parser.parse_args(words)
    plan = prepared_plan(to_request(options, overrides))
    seal(plan, chosen_steps(plan, until=options.until, stage=None)[-1])
    return 0


def meet() -> None:
    """Meet the other processes of this run, if there are any; only the first of them says what happens."""
    own = join()
    if own.rank > 0:
        log.setLevel(logging.WARNING)
    elif own.size > 1:
        log.info("%d processes on %d machines", own.size, own.machines)


def run_request(request: Request) -> RecipePlan:
    """Bring the recipe of a request up to date and write its report; returns its plan."""
    meet()
    plan = prepared_plan(request)
    again = run_plan(plan, plan.steps, title=f"run {plan.recipe.name}")
    decided(lambda: write_reports(plan, again=again))
    return plan


def split_request(words: Sequence[str]) -> Request:
    """The request that command-line words make; inverse of `Request.words`."""
    options, overrides = split_overrides(words)
    return to_request(_parser(None).parse_args(options), overrides)


def prepared_plan(request: Request) -> RecipePlan:
    """The plan of a request, after its dataset has made the files that it is read from."""
    plan = make_plan(request)
    prepare = plan.view.info.prepare
    if prepare is not None:
        config = next(step.identity.config for step in plan.steps if step.identity)
        decided(lambda: prepare(plan.view.root, config["data"].get("options") or {}) and None)
    return plan


def chosen_steps(plan: RecipePlan, *, until: str | None, stage: Stage | None) -> list[PlannedStep]:
    """Steps that a command line asks for.

    Raises:
        ConfigError: for an unknown step.
    """
    known = {step.name: step for step in plan.steps}
    if until is not None:
        if until not in known:
            raise ConfigError(f"--until names the step {until!r}. {did_you_mean(until, known)}")
        recipe = replace(plan.recipe, outputs=(until,))
        return plan.only([step.name for step in recipe.ordered()])
    return plan.steps if stage is None else plan.only(stage.steps)


def _check_parts(options: argparse.Namespace, steps: Sequence[PlannedStep]) -> None:
    """Refuse `--shard` and `--no-predict` where they make no sense.

    Raises:
        ConfigError: says why.
    """
    if not (options.shard or options.no_predict):
        return
    if options.until is None:
        raise ConfigError("--shard and --no-predict are about one step: name it with --until STEP.")
    if options.shard and (options.no_predict or options.force is not None):
        raise ConfigError("--shard predicts a share of the images; it goes neither with --no-predict nor with --force.")
    identity = steps[-1].identity
    if options.no_predict and not (identity and identity.spec.fits):
        raise ConfigError(f"{options.until} has no fit, so that --no-predict would leave nothing to do.")


def _forced(given: Sequence[str] | None, steps: Sequence[PlannedStep]) -> list[str]:
    names = {step.name: step for step in steps}
    if given is None:
        return []
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ConfigError(f"--force names the step {unknown[0]!r}. {did_you_mean(unknown[0], names)}")
    return list(given or names)


def write_reports(plan: RecipePlan, *, again: bool) -> None:
    """Write the report of a recipe, if masks were made or it is not there."""
    from dhr_lightning.pipeline.reports import report_folder, write_recipe_report

    folder = report_folder(plan)
    if again or not (folder / "report.html").is_file():
        write_recipe_report([plan], folder, images=8)


def _parser(stage: Stage | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=None if stage else "python -m dhr_lightning run",
        description=f"{stage.name}: {stage.about}. Steps: {', '.join(stage.steps)}." if stage
        else "Run a recipe: make what is not there or out of date, and write the report.",
        epilog="Overrides: --data.batch_size 8 for all steps, --dhr.trainer.max_epochs 20 or --cam.lr 0.01 for one.",
        allow_abbrev=False,
    )  # fmt: skip
    add_options(parser)
    if stage is not None:
        parser.add_argument("--recipe", dest="recipe_option", metavar="RECIPE", help="the same as RECIPE")
    parser.add_argument("--until", metavar="STEP", help="run this step and what it needs, and no more")
    parser.add_argument("--force", nargs="*", metavar="STEP", help="make steps again (all of them if none is named)")
    parser.add_argument(
        "--forecast", action=argparse.BooleanOptionalAction, default=None,
        help="say first how long it will take, timed on a few images (default: for photos of your own)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="I/N", help="one of N jobs that share the prediction of the step that --until names"
    )
    parser.add_argument("--no-predict", action="store_true", help="only fit the step that --until names")
    parser.add_argument("--dry", action="store_true", help="show what would run, and why, without running it")
    return parser
