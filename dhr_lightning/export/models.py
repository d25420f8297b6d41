"""A finished segmenter as a file that runs elsewhere, with a card that says what it was trained on."""

import logging
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json
from dhr_lightning.errors import ConfigError
from dhr_lightning.evaluation.kinds import report_key
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan, make_plan
from dhr_lightning.pipeline.reports import report_folder
from dhr_lightning.pipeline.request import Request, names_folder
from dhr_lightning.pipeline.status import first_request
from dhr_lightning.predicting.sources import find_source, segmenter_of
from dhr_lightning.predicting.suffixes import SUFFIXES

MODELS = {"onnx": "model.onnx", "safetensors": "model.safetensors"}
log = logging.getLogger("dhr_lightning")


def export_model(to: str, name: str, request: Request, output: Path, *, step: str | None, force: bool) -> None:
    """Write a model.

    Args:
        to: a name in `MODELS`.
        name: a recipe, the folder of a fit, or a checkpoint, see `find_source`.
        request: names the data of a recipe.
        output: file to write.
        step: of the recipe, instead of its last segmenter.
        force: replace what is there.

    Raises:
        DHRError: if there is no such model, or it cannot be written in this form.
    """
    from dhr_lightning.predicting.model import build  # imports torch, for which masks need not wait
    from dhr_lightning.predicting.onnx import write_onnx
    from dhr_lightning.predicting.portable import write_portable

    if output.exists() and not force:
        raise ConfigError(f"{output} exists. Choose another --output, or replace it with --force.")
    model = build(find_source(name, request, step=step), device="cpu")
    card = {**model.card, **training_of(name, request, step)}
    if to == "onnx":
        share = write_onnx(model.engine, output, card=card, force=force)
        log.info("export: %s as onnx in %s; %.4f %% of pixels agree with the model", model.title, output, 100 * share)
    else:
        write_portable(model.engine, output, card=card, force=force)
        log.info("export: %s as safetensors in %s, its card in %s", model.title, output, output.with_suffix(".json"))


def training_of(name: str, request: Request, step: str | None) -> dict[str, Any]:
    """What a model of a recipe was trained on and how good its masks are; nothing for models that name no recipe.

    Returns:
        `trained_on`: dataset, images, the step and method whose masks it learnt from; `figures`: mIoU and protocol of
        its predictions, as the recipe's report has them, empty without one.
    """
    if Path(name).suffix in SUFFIXES or names_folder(name):
        return {}
    plan = make_plan(first_request(Request(**{**vars(request), "recipe": name})))
    planned = segmenter_of(plan.steps, step, outputs=plan.recipe.outputs)
    read = {port: source for port, source in planned.step.reads.items() if port in ("masks", "mask")}
    methods = {one.name: one.step.use for one in plan.steps}
    masks = [f"{source} ({methods.get(source.partition('.')[0], source)})" for source in read.values()]
    return {
        "trained_on": {
            "dataset": plan.view.info.name,
            "images": len(plan.view.records("train")),
            "masks": masks[0] if masks else planned.step.use,
        },
        "figures": _figures(plan, planned),
    }


def _figures(plan: RecipePlan, step: PlannedStep) -> dict[str, dict[str, Any]]:
    report = report_folder(plan) / "report.json"
    metrics = read_json(report)["metrics"] if report.is_file() else {}
    keys = [report_key(step.name, address, split) for address, split in step.outputs()]
    return {key: {name: metrics[key][name] for name in ("miou", "protocol")} for key in keys if key in metrics}
