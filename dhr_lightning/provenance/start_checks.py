"""What refuses a step before any work, from its configuration alone (no torch)."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.provenance.arguments import constructor_arguments
from dhr_lightning.provenance.identity import AUTO, spec_of
from dhr_lightning.steps import did_you_mean

_DATAMODULE, _TRAINER = "dhr_lightning.data.datamodule.WSSSDataModule", "lightning.Trainer"
_WITHOUT_WEIGHTS = "small32"  # random initialisation only
_ALL_LEARNS = {"frozen_norm": "false", "frozen_stages": "0", "frozen_encoder": "false"}
_PACKAGES = {  # by option: the value that needs one
    "refine": "pydensecrf", "test_crf.backend": "pydensecrf", "rebalance.transport": "pot", "decoder": "mask2former",
}  # fmt: skip
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_DEVICES = ("gpu", "cuda", "mps")
_REFUSED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "logger": (lambda value: value is False, "would leave the run without a folder for its checkpoints"),
    "enable_checkpointing": (lambda value: value is False, "would leave nothing to predict with"),
    "fast_dev_run": (bool, "trains on a batch and keeps nothing; --overlay debug.yaml shows the steps run"),
    "max_epochs": (lambda value: value == 0, "trains nothing, so there is nothing to predict with"),
    "max_steps": (lambda value: value == 0, "trains nothing, so there is nothing to predict with"),
    "limit_predict_batches": (lambda value: value is not None and not (isinstance(value, float) and value == 1),
                              "would leave images without a mask, and an artifact covers all of them"),
}  # fmt: skip
_FITTED = "patches"  # fitted to the images, has no weights before


def check_background(config: Mapping[str, Any], *, step: str) -> None:
    """Refuse a method that needs a background class on a dataset without one.

    Args:
        config: configuration of the step.
        step: its name.

    Raises:
        ConfigError: says what to do instead.
    """
    spec = spec_of(config)
    info = resolve_dataset(config.get("data") or {})
    if spec.needs_background and not info.classes.has_background:
        raise ConfigError(
            f"{step} ({spec.name}) needs a background class, which {info.name} lacks. Leave the step out "
            f"(--drop {step}), or use the recipe no_background."
        )


def check_arguments(config: Mapping[str, Any], *, step: str) -> None:
    """Refuse arguments that the task, the data or the trainer of a step does not have.

    A task of another package whose source does not tell its arguments is left to the fit.

    Args:
        config: configuration of the step.
        step: its name.

    Raises:
        ConfigError: names the argument and the nearest ones.
    """
    model = config["model"]
    sections = (
        ("model.init_args", model["class_path"], model.get("init_args")),
        ("data", _DATAMODULE, config.get("data")),
        ("trainer", _TRAINER, config.get("trainer")),
    )
    for section, owner, given in sections:
        known = constructor_arguments(owner)
        unknown = [name for name in given or {} if known is not None and name not in known]
        if unknown:
            raise ConfigError(
                f"{step}: {owner.rpartition('.')[2]} has no argument {unknown[0]!r} ({section}). "
                f"{did_you_mean(unknown[0], dict.fromkeys(sorted(known or ())))}"
            )


def filled_from(config: Mapping[str, Any]) -> str | None:
    """The run whose weights fill the encoder of a step, or `None`."""
    inputs = (config.get("data") or {}).get("inputs") or {}
    ports = [port for port, read in spec_of(config).reads.items() if read.weights]
    return next((str(inputs[port]) for port in ports if inputs.get(port)), None)


def backbone_of(config: Mapping[str, Any]) -> str:
    """Backbone of a step: the one it names, or the default of its task (which imports it)."""
    arguments = config["model"].get("init_args") or {}
    if "backbone" in arguments:
        return str(arguments["backbone"])
    task_classes = spec_of(config).task_class().__mro__  # the first constructor that knows it sets the default
    found = (inspect.signature(one).parameters.get("backbone") for one in task_classes)
    return str(next(parameter.default for parameter in found if parameter is not None))


def random_backbone(config: Mapping[str, Any]) -> str | None:
    """The backbone that a step would train from random weights without having been asked to, or `None`.

    Only photos count: the built-in images are simple enough to learn from nothing. A step whose encoder an earlier step
    fills needs no weights of its own, and `patches` is fitted to the images. Random weights are meant only where all of
    them may learn.
    """
    if not spec_of(config).trains_backbone:
        return None
    arguments, backbone = config["model"].get("init_args") or {}, backbone_of(config)
    named = arguments.get("pretrained") and (backbone, arguments["pretrained"]) != (_WITHOUT_WEIGHTS, True)
    meant = named or (arguments.get("from_scratch") is True and not _frozen(config))
    if backbone == _FITTED or filled_from(config) or meant or resolve_dataset(config.get("data") or {}).is_builtin:
        return None
    return backbone


def _frozen(config: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a step that keep parts of the encoder as they are, with the values that let everything learn."""
    arguments = config["model"].get("init_args") or {}
    return {name: value for name, value in _ALL_LEARNS.items() if arguments.get(name)}


def can_download(config: Mapping[str, Any]) -> bool:
    """Whether a step has a backbone without weights that has some by name."""
    if not spec_of(config).trains_backbone:
        return False
    arguments, backbone = config["model"].get("init_args") or {}, backbone_of(config)
    wants = not (arguments.get("pretrained") or arguments.get("from_scratch") or filled_from(config))
    return wants and backbone not in (_FITTED, _WITHOUT_WEIGHTS)


def named_weights(weights: str, backbone: str, *, step: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """Arguments of a task that starts from the weights that the command line names.

    Args:
        weights: a file, or a name of weights, which is also that of the backbone.
        backbone: of the task; `auto` where the weights say which.
        step: for the message.
        files: registered ones by name, see `provenance.registered`.

    Raises:
        ConfigError: if it is the name of another backbone.
    """
    if os.path.isfile(weights) or os.sep in weights or Path(weights).suffix in _FILES:
        return {"pretrained": weights}
    if backbone not in (AUTO, weights):
        raise ConfigError(
            f"{step} has the backbone {backbone!r}, but --weights names {weights!r}, which is no file either. To "
            f"change the backbone: --{step}.backbone {weights} --download."
        )
    return {"backbone": weights, "pretrained": str(files[weights]) if weights in files else True}


def check_packages(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse optional packages that a step asks for and that are not installed.

    Args:
        configs: configurations by step.

    Raises:
        DependencyError: names the option and the extra.
    """
    for step, config in configs.items():
        for option, package in _PACKAGES.items():
            if _setting(config["model"].get("init_args"), option) == package:
                _check_package(package, f"{step}.{option}")


def check_trainers(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse settings of the trainer that only the end of a long step would refuse.

    Args:
        configs: configurations by step.

    Raises:
        ConfigError: names the step and the setting.
    """
    for step, config in configs.items():
        trainer = config.get("trainer") or {}
        for name, (refused, why) in _REFUSED.items():
            if name in trainer and refused(trainer[name]):
                raise ConfigError(f"{step}: trainer.{name} {str(trainer[name]).lower()} {why}. Leave it out.")
        accelerator = str(trainer.get("accelerator", "auto"))
        if accelerator in _DEVICES and not _has_device(accelerator):
            raise ConfigError(
                f"{step}: trainer.accelerator is {accelerator}, but torch finds no such device here. Use cpu, or auto "
                "for what is there; for a GPU, install the build of torch for its driver."
            )


def _has_device(accelerator: str) -> bool:
    import torch  # only where a device is asked for by name

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return any(found.values()) if accelerator == "gpu" else found[accelerator]


def _setting(arguments: Any, option: str) -> Any:  # noqa: ANN401 - what YAML gave
    """An argument, or `a.b` of one that is a mapping; `None` where it is not given."""
    for name in option.split("."):
        arguments = arguments.get(name) if isinstance(arguments, Mapping) else None
    return arguments


def _check_package(package: str, option: str) -> None:
    from dhr_lightning.models.mask2former import check_mask2former
    from dhr_lightning.ops.crf.dense import check_pydensecrf  # imports torch
    from dhr_lightning.ops.transport.pot import check_pot

    {"pydensecrf": check_pydensecrf, "pot": check_pot, "mask2former": check_mask2former}[package](option)


def check_weights(configs: Mapping[str, Mapping[str, Any]], *, in_recipe: bool) -> None:
    """Refuse random weights on photos that nobody asked for, and files of weights that are not there.

    Args:
        configs: configurations by step.
        in_recipe: whether a recipe runs, whose overrides begin with the step; else `fit` does.

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
        words: list[str] = []
        for step in random:
            changes = {**values, **(_frozen(configs[step]) if "from_scratch" in values else {})}
            prefix = f"--{step}" if in_recipe else "--model.init_args"
            words += [f"{prefix}.{name} {value}" for name, value in changes.items()]
        return " ".join(words)

    by_name = "--download" if in_recipe else override(pretrained="true")
    by_file = "--weights FILE" if in_recipe else override(pretrained="FILE")
    weights = f"Name pretrained weights: by name with `{by_name}`, by file with `{by_file}`"
    if set(random.values()) == {_WITHOUT_WEIGHTS}:
        weights = f"No pretrained weights of {_WITHOUT_WEIGHTS!r} exist: choose another model.init_args.backbone"
    make = "; with make, put this into ARGS='...'" if in_recipe else ""
    raise ConfigError(
        f"{steps} would start from random weights, which learn nothing useful from photos. {weights}. "
        f"If random weights are meant: `{override(from_scratch='true')}`{make}."
    )
