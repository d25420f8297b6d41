"""What refuses a step before any work, from its configuration alone (no torch)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.provenance.identity import TASKS, dataset_of, read_kinds, task_name

# Backbone of each task that has one, as in its signature.
BACKBONES: Mapping[str, str] = {
    "CAMTask": "resnet50",
    "USSTask": "vit_base_patch8_224.dino",
    "WSSTask": "resnet101",
    "DHRTask": "resnet101",
}
NO_BACKGROUND = "no_background.yaml"
_WITHOUT_WEIGHTS = "small32"  # random initialisation only
_ALL_LEARNS = {"frozen_norm": "false", "frozen_stages": "0", "frozen_encoder": "false"}
_FITTED = "patches"  # fitted to the images, has no weights before


def reason_impossible(config: Mapping[str, Any]) -> str | None:
    """Why a step can never run on this dataset, in words, or `None` if it can."""
    info = dataset_of(config)[0]
    if task_name(config) != "MARSTask" or info.classes.has_background:
        return None
    return f"{info.name} has no background class, which MARS needs; DHR starts from base_mask"


def check_background(config: Mapping[str, Any], *, step: str) -> None:
    """Refuse to start from MARS masks where there can be none.

    Args:
        config: configuration of the step.
        step: its name.

    Raises:
        ConfigError: says what to start from instead.
    """
    info = dataset_of(config)[0]
    if not info.classes.has_background and "mars_mask" in read_kinds(config):
        raise ConfigError(
            f"{step} would start from mars_mask, but MARS needs a background class, which {info.name} lacks. "
            f"Set model.init_args.masks: base_mask, as configs/{NO_BACKGROUND} does (the stages merge it themselves)."
        )


def filled_from(config: Mapping[str, Any]) -> str | None:
    """Artifact kind whose network fills the encoder of a step, or `None`."""
    arguments = config["model"].get("init_args") or {}
    kind: str | None = arguments.get("init_from", TASKS[task_name(config)].reads.get("init_from"))
    return kind


def random_backbone(config: Mapping[str, Any]) -> str | None:
    """The backbone that a step would train from random weights without having been asked to, or `None`.

    Only photos count: the built-in images are simple enough to learn from nothing. A step whose encoder an earlier step
    fills needs no weights of its own, and `patches` is fitted to the images. Random weights are meant only where all of
    them may learn.
    """
    task, arguments = task_name(config), config["model"].get("init_args") or {}
    backbone = str(arguments.get("backbone", BACKBONES.get(task, _FITTED)))
    named = arguments.get("pretrained") and (backbone, arguments["pretrained"]) != (_WITHOUT_WEIGHTS, True)
    meant = named or (arguments.get("from_scratch") is True and not _frozen(config))
    if backbone == _FITTED or filled_from(config) or meant or dataset_of(config)[0].is_builtin:
        return None
    return backbone


def _frozen(config: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a step that keep parts of the encoder as they are, with the values that let everything learn."""
    arguments = config["model"].get("init_args") or {}
    return {name: value for name, value in _ALL_LEARNS.items() if arguments.get(name)}


def can_download(config: Mapping[str, Any]) -> bool:
    """Whether a step has a backbone without weights that has some by name."""
    task, arguments = task_name(config), config["model"].get("init_args") or {}
    backbone = arguments.get("backbone", BACKBONES.get(task, _FITTED))
    wants = not (arguments.get("pretrained") or arguments.get("from_scratch") or filled_from(config))
    return wants and backbone not in (_FITTED, _WITHOUT_WEIGHTS)


def check_weights(configs: Mapping[str, Mapping[str, Any]], *, in_stage: bool) -> None:
    """Refuse random weights on photos that nobody asked for, and files of weights that are not there.

    Args:
        configs: configurations by step.
        in_stage: whether a stage file asks, whose overrides follow `--` and begin with the step; else `fit` does.

    Raises:
        ConfigError: names steps and backbones, and how to name weights or to do without.
        CheckpointError: if a file of weights is missing.
    """
    for step, config in configs.items():
        file = (config["model"].get("init_args") or {}).get("pretrained")
        if isinstance(file, str) and not Path(file).is_file():
            raise CheckpointError(f"{step}: there is no file of weights at {file}. Correct model.init_args.pretrained.")
    random = {step: backbone for step, config in configs.items() if (backbone := random_backbone(config))}
    if not random:
        return
    steps = " and ".join(f"{step} (backbone {backbone!r})" for step, backbone in random.items())

    def override(**values: str) -> str:
        words = ["--"] if in_stage else []
        for step in random:
            changes = {**values, **(_frozen(configs[step]) if "from_scratch" in values else {})}
            prefix = f"--{step}.model.init_args" if in_stage else "--model.init_args"
            words += [f"{prefix}.{name} {value}" for name, value in changes.items()]
        return " ".join(words)

    by_name = "--download" if in_stage else override(pretrained="true")
    weights = f"Name pretrained weights: by name with `{by_name}`, by file with `{override(pretrained='FILE')}`"
    if set(random.values()) == {_WITHOUT_WEIGHTS}:
        weights = f"No pretrained weights of {_WITHOUT_WEIGHTS!r} exist: choose another model.init_args.backbone"
    make = "; with make, put this into ARGS='...'" if in_stage else ""
    raise ConfigError(
        f"{steps} would start from random weights, which learn nothing useful from photos. {weights}. "
        f"If random weights are meant: `{override(from_scratch='true')}`{make}."
    )
