"""Build the tasks of a recipe before any work: what the last step would refuse is said before the first one runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import ConfigError, DHRError
from dhr_lightning.pipeline.plan import PlannedStep
from dhr_lightning.provenance.identity import AUTO, StepIdentity

_SECTION = "model.init_args"


def refuse_unbuildable(steps: Sequence[PlannedStep], classes: ClassSet) -> None:
    """Raise what the constructor of a task says of its settings and of the classes, with the name of the step.

    Args:
        steps: those that will run.
        classes: of the data.

    Raises:
        ConfigError: of the first step that cannot be built.
    """
    for step in steps:
        error = build_error(step, classes)
        if error is not None:
            raise ConfigError(f"{step.name}: {error}") from error


def build_error(step: PlannedStep, classes: ClassSet) -> Exception | None:
    """What a task refuses, without weights of a file or a download; None if it can be built or has nothing to build.

    A backbone that a file of weights names is left to its own step, which reads the file.
    """
    if step.identity is None or _named_by_weights(step.identity):
        return None
    try:
        _build(step.identity, classes)
    except (DHRError, ValueError) as error:
        return error
    except TypeError as error:  # a field that settings do not have, a null
        return ConfigError(f"the configuration cannot be used: {error}")
    return None


def _named_by_weights(identity: StepIdentity) -> bool:
    arguments, frozen = identity.arguments, not identity.spec.fits
    return frozen and arguments.get("backbone", AUTO) == AUTO and isinstance(arguments.get("pretrained"), str)


def _build(identity: StepIdentity, classes: ClassSet) -> None:
    """Shapes alone, which takes no time and no memory; with numbers where a network computes some while it is built."""
    import torch  # a plan is made without it

    arguments = dict(identity.config["model"].get("init_args") or {})
    arguments |= {"class_names": list(classes.names), "has_background": classes.has_background}
    if arguments.get("pretrained"):
        arguments["pretrained"] = False
    task = identity.spec.task_class()
    arguments = _typed(task, arguments)
    try:
        with torch.device("meta"):
            task(**arguments)
    except RuntimeError:  # what torch says of numbers that shapes alone do not have
        task(**arguments)


def _typed(task: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the command line of a step turns them into the types of a constructor."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(task, _SECTION)
    section, name = _SECTION.split(".")
    try:
        parsed: dict[str, Any] = parser.parse_object({section: {name: dict(arguments)}}).as_dict()
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).removeprefix("Parser key ").split())) from error
    return dict(parsed[section][name])
