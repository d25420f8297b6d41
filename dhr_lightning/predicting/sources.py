"""Where a model comes from: a recipe that has run, the folder of a fit, or a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.runs import LAST, find_checkpoint, finished_checkpoint, read_state
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.config import read_yaml
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.errors import CheckpointError, ConfigError, run_command
from dhr_lightning.pipeline.plan import PlannedStep, make_plan
from dhr_lightning.pipeline.request import Request, names_folder
from dhr_lightning.pipeline.status import first_request
from dhr_lightning.predicting.suffixes import ONNX, PORTABLE, SUFFIXES

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Source:
    """What a model is made of.

    Args:
        title: for people.
        checkpoint: weights of the segmenter.
        arguments: of its task, where they differ from those in the checkpoint.
        features: arguments of the stored features that its step reads; `None` without any, or where nothing is left
            of them.
        tagger: checkpoint of the tag head that gates it.
    """

    title: str
    checkpoint: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] | None = None
    tagger: Path | None = None


def find_source(name: str, request: Request | None = None, *, step: str | None = None) -> Source:
    """The model that a name means.

    Args:
        name: a recipe that has run (as `status` shows it), the folder of a fit or of one of its versions, a
            checkpoint, or an exported `.onnx` or `.safetensors`.
        request: names the data of a recipe.
        step: of a recipe, instead of the last segmenter.

    Raises:
        ConfigError: if there is no such recipe or step, or it predicts nothing.
        CheckpointError: if the fit has not finished.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise CheckpointError(f"There is no model at {path}. Name a recipe that has run, or another file.")
        if path.suffix == PORTABLE:
            return _of_portable(path, request)
        return Source(str(path), path) if path.suffix == ONNX else _of_run(path, path.resolve().parents[1] / _CONFIG)
    if names_folder(name):
        return _of_folder(path)
    plan = make_plan(first_request(replace(request or Request(), recipe=name)))
    planned = segmenter_of(plan.steps, step, outputs=plan.recipe.outputs)
    if planned.identity is None:
        raise ConfigError(f"{planned.name} is imported, so it holds masks and no model.")
    weights = finished_checkpoint(planned.identity.run_folder)
    if weights is None:
        raise CheckpointError(f"{planned.name} has not been trained to its end. Run `{run_command()}` first.")
    return _of_config(f"{plan.recipe.name} ({planned.name})", weights, planned.identity.config)


def _of_portable(path: Path, request: Request | None) -> Source:
    """An exported file; `--weights` says where the backbone of its features lies on this machine."""
    from dhr_lightning.predicting.portable import read_card  # imports torch

    features = read_card(path)["segmenter"].get("features")
    given = request.weights if request else None
    return Source(str(path), path, features={**features, "pretrained": given} if features and given else features)


def segmenter_of(steps: list[PlannedStep], wanted: str | None, *, outputs: tuple[str, ...]) -> PlannedStep:
    """The step of a recipe that predicts new photos: the one named, or the last of its outputs that does.

    Raises:
        ConfigError: if there is none.
    """
    able = {one.name: one for one in steps if one.identity and "prediction" in one.identity.spec.writes}
    if wanted is not None and wanted not in able:
        raise ConfigError(f"{wanted!r} is no segmenter of this recipe. Its segmenters: {', '.join(able) or 'none'}.")
    last = [name for name in (*able, *outputs) if name in able]
    if not last:
        raise ConfigError("This recipe has no segmenter, so it cannot predict new photos. Choose another recipe.")
    return able[wanted or last[-1]]


def _of_folder(folder: Path) -> Source:
    """The model of a fit (its newest version) or of one version."""
    state = read_state(folder)
    run = folder / str(state["run"]) if state else folder
    weights = finished_checkpoint(folder) if state else find_checkpoint(run)
    if weights is None:
        raise CheckpointError(
            f"{folder} holds no finished model (checkpoints/{LAST}). Name the folder of a fit, such as "
            "runs/DATASET/METHOD/KEY, or run its recipe to the end."
        )
    return _of_run(weights, run / _CONFIG)


def _of_run(weights: Path, config: Path) -> Source:
    content = read_yaml(config) if config.is_file() else {}
    return _of_config(str(weights), weights, content)


def _of_config(title: str, weights: Path, config: Mapping[str, Any]) -> Source:
    """A model from the configuration that it was trained with."""
    data, model = config.get("data") or {}, config.get("model") or {}
    inputs = data.get("inputs") or {}
    features, tagger = inputs.get("features"), inputs.get("tagger")
    arguments = dict(model.get("init_args") or {})
    if not features:
        return Source(title, weights, arguments)
    info = resolve_dataset(data)
    workspace = Path(data.get("workspace") or ".")
    manifest = ArtifactStore(workspace / "artifacts", info.name).manifest(str(features), "train")
    made = manifest.info.get("config", {}).get("model", {}).get("init_args", {}) if manifest else None
    fit = workspace / "runs" / info.name / str(tagger) if tagger else None
    found = finished_checkpoint(fit) if fit else None
    if tagger and found is None:
        raise CheckpointError(f"{title} is gated by {tagger}, whose weights are not there. Run `{run_command()}`.")
    return Source(title, weights, arguments, made, found)
