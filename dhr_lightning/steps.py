"""What a method reads and writes, and the methods by name; imports no torch, so that planning is quick."""

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dhr_lightning.errors import ConfigError

ENTRY_POINTS = "dhr_lightning.methods"
NEUTRAL = ("compile",)  # arguments of any task that say how it runs, not what it gives
TRUTH = "truth"  # in place of a step: the ground truth, for full supervision


@dataclass(frozen=True)
class Read:
    """One input of a step, by the name that its batches and recipes use for it (its port).

    Args:
        kinds: artifact kinds that will do; none if it is the weights of a step.
        fit: whether training batches hold it.
        predict: whether batches of whole images hold it, for prediction and for threshold choice; of weights, whether
            prediction alone needs them.
        refresh: whether batches of a mask refresh hold it.
        whole: whether the fit reads it of all images at once before its first step; no batch holds it.
        truth: whether the ground truth may stand in its place.
        optional: whether the step runs without it.
        follows: of optional weights, the port whose step they come from where the recipe names none: that step must
            train a backbone. So `--swap propagation=irn` takes the encoder of the CAMs it reads.
        splits: splits of the dataset whose whole images have it, where prediction reads it.
    """

    kinds: tuple[str, ...] = ()
    fit: bool = False
    predict: bool = False
    refresh: bool = False
    whole: bool = False
    truth: bool = False
    optional: bool = False
    follows: str = ""
    splits: tuple[str, ...] = ("train",)

    @property
    def weights(self) -> bool:
        """Whether it is the weights of a step, and no artifact."""
        return not self.kinds

    @property
    def in_fit(self) -> bool:
        """Whether the weights of the reader depend on it."""
        return self.fit or self.refresh or self.whole or (self.weights and not self.predict)


@dataclass(frozen=True)
class Write:
    """One output of a step, by its artifact kind.

    Args:
        splits: splits of the dataset that it covers, as far as they exist.
        rounds: whether a mask refresh writes it during the fit, round by round, instead of prediction.
        on_demand: further splits, each of which it covers only where a step of the recipe reads it.
    """

    splits: tuple[str, ...] = ("train",)
    rounds: bool = False
    on_demand: tuple[str, ...] = ()

    def covered(self, demanded: Collection[str] = ()) -> tuple[str, ...]:
        """Splits that it covers where others read some besides."""
        return (*self.splits, *(split for split in self.on_demand if split in demanded))


@dataclass(frozen=True)
class StepSpec:
    """Everything about a method that is known without running it.

    Args:
        name: of the method, unique.
        task: import path of its LightningModule.
        about: one line for people.
        reads: inputs by port.
        writes: outputs by artifact kind.
        predict_only: arguments of the task that change what it writes, but not its weights.
        neutral: arguments that change neither, beside those of all tasks (`NEUTRAL`).
        fits: whether there is anything to fit before prediction.
        needs_background: whether it makes no sense without a background class.
        forwards: output kind -> port of the input that stands in for it when a recipe drops the step.
        trains_backbone: whether it starts from a pretrained backbone that the user has to name.
        label: name in pictures and tables.
    """

    name: str
    task: str
    about: str
    reads: Mapping[str, Read] = field(default_factory=lambda: MappingProxyType({}))
    writes: Mapping[str, Write] = field(default_factory=lambda: MappingProxyType({}))
    predict_only: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ("workers",)
    fits: bool = True
    needs_background: bool = False
    forwards: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    trains_backbone: bool = False
    label: str = ""

    @property
    def task_name(self) -> str:
        """Class name of the task."""
        return self.task.rpartition(".")[2]

    @property
    def has_rounds(self) -> bool:
        """Whether it trains on masks that it makes again between epochs."""
        return any(write.rounds for write in self.writes.values())

    def task_class(self) -> Any:  # noqa: ANN401 - a LightningModule, which this module must not import
        """Import the task."""
        module, _, name = self.task.rpartition(".")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Method:
    """A method as it is registered.

    Args:
        spec: what it reads and writes.
        config: its YAML file of settings; None if it has none.
    """

    spec: StepSpec
    config: Path | None


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name: the folders of this package with a `spec.py`, and those of other packages.

    Another package registers one by an entry point of the group `dhr_lightning.methods` that names its `StepSpec`.

    Raises:
        ConfigError: if a method of another package cannot be imported, or takes a name that is taken.
    """
    found: dict[str, Method] = {}
    root = Path(__file__).parent / "methods"
    for path in sorted(root.glob("**/spec.py")):
        parts = path.relative_to(root).with_suffix("").parts
        _register(found, importlib.import_module(".".join(("dhr_lightning.methods", *parts))).SPEC, path.parent)
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda one: one.name):
        try:
            spec = point.load()
            folder = Path(importlib.import_module(point.module).__file__ or "").parent
        except Exception as error:  # anything may happen in foreign code; the user must see whose it is
            raise ConfigError(
                f"The method {point.name!r} of {_owner(point)} cannot be loaded ({error!r}). Repair or uninstall it."
            ) from error
        if not isinstance(spec, StepSpec):
            raise ConfigError(
                f"The method {point.name!r} of {_owner(point)} is no StepSpec, but {type(spec).__name__}."
            )
        _register(found, spec, folder)
    return MappingProxyType(found)


def _register(found: dict[str, Method], spec: StepSpec, folder: Path) -> None:
    if spec.name in found:
        raise ConfigError(f"Two methods are called {spec.name!r}: {found[spec.name].spec.task} and {spec.task}.")
    config = folder / "config.yaml"
    found[spec.name] = Method(spec, config if config.is_file() else None)


def _owner(point: Any) -> str:  # noqa: ANN401 - typed differently by each version of Python
    return f"package {point.dist.name}" if point.dist else f"module {point.value}"


def get_method(name: str) -> Method:
    """A method by name.

    Raises:
        ConfigError: if there is none; names the nearest.
    """
    known = methods()
    if name not in known:
        raise ConfigError(f"Unknown method {name!r}. {did_you_mean(name, known)}")
    return known[name]


def method_of_task(class_path: str) -> Method | None:
    """The first method whose task has this class name or import path, or None."""
    found = (method for method in methods().values() if class_path in (method.spec.task, method.spec.task_name))
    return next(found, None)


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """The nearest names, or all of them, in words."""
    near = get_close_matches(name, known, n=3)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
