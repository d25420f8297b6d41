"""The steps of a recipe with their configurations, and what of them is there; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dhr_lightning.artifacts.runs import read_state
from dhr_lightning.artifacts.store import Status
from dhr_lightning.config import (
    SECTIONS,
    apply_overrides,
    check_run_config,
    find_config,
    merge_layers,
    read_yaml,
    split_options,
)
from dhr_lightning.errors import ConfigError, set_run_command
from dhr_lightning.pipeline.recipe import IMPORTED, Recipe, RecipeStep, kind_read
from dhr_lightning.pipeline.request import Request
from dhr_lightning.provenance.identity import AUTO, StepIdentity
from dhr_lightning.provenance.recorded import recorded_status
from dhr_lightning.provenance.registered import FROZEN, registered
from dhr_lightning.provenance.start_checks import can_download, check_arguments, check_background, named_weights
from dhr_lightning.provenance.views import DataView, DataViews
from dhr_lightning.steps import TRUTH, did_you_mean, get_method


@dataclass
class PlannedStep:
    """A step with its resolved configuration.

    Args:
        step: of the recipe.
        identity: what it depends on and where its files lie; None for imported artifacts.
        view: its dataset.
    """

    step: RecipeStep
    identity: StepIdentity | None
    view: DataView

    @property
    def name(self) -> str:
        """Name within the recipe."""
        return self.step.name

    def address(self, kind: str) -> str:
        """Address of an output that others read."""
        return self.identity.final(kind) if self.identity else f"{self.step.use}/{kind}"

    def outputs(self) -> list[tuple[str, str]]:
        """Every `(address, split)` that it makes; of imported artifacts those that are there."""
        if self.identity:
            return self.identity.outputs()
        store = self.view.store
        return [(address, split) for address, split in store.addresses() if address.startswith(f"{self.step.use}/")]

    def status(self, address: str, split: str) -> Status:
        """State of an output."""
        store = self.view.store
        if self.identity is None:
            return recorded_status(store, address, split, self.view)
        if not store.begun(address, split):  # nothing to compare: no image of the dataset has to be read
            return store.status(address, split)
        ids = [record.id for record in self.view.records(split)]
        return store.status(address, split, expected=self.identity.describe(address, split), ids=ids)

    def seconds(self) -> float | None:
        """Seconds of fit and prediction, mask refreshes included; None if it has not run."""
        if self.identity is None:
            return None
        fit = float(read_state(self.identity.run_folder).get("seconds") or 0)
        manifests = [self.view.store.manifest(*output) for output in self.identity.outputs_of_prediction()]
        return fit + max((float(one.info.get("seconds") or 0) for one in manifests if one), default=0.0) or None

    def statuses(self) -> dict[tuple[str, str], Status]:
        """State of every output."""
        return {output: self.status(*output) for output in self.outputs()}


@dataclass
class RecipePlan:
    """A recipe on a dataset.

    Args:
        recipe: with swaps and drops.
        request: what was asked for.
        steps: in order.
    """

    recipe: Recipe
    request: Request
    steps: list[PlannedStep]

    @property
    def view(self) -> DataView:
        """The dataset."""
        return self.steps[0].view

    def __getitem__(self, name: str) -> PlannedStep:
        """A step by name."""
        return next(step for step in self.steps if step.name == name)

    def only(self, names: Sequence[str]) -> list[PlannedStep]:
        """Steps of these names, in order."""
        return [step for step in self.steps if step.name in names]


def make_plan(request: Request) -> RecipePlan:
    """Resolve every step of a recipe.

    Args:
        request: what the command line asks for.

    Raises:
        ConfigError: if something in recipe, overlays or overrides does not fit.
    """
    recipe = request.load()
    order = recipe.ordered()
    overlays = [read_yaml(find_config(path)) for path in request.overlays]
    names = [*recipe.steps, *(drop for drop in request.drops)]
    common, own = _by_step(request.overrides, names)
    views, demanded = DataViews(), _splits_read(order)
    planned: dict[str, PlannedStep] = {}
    for step in order:
        layers = [*_own_layers(step, recipe), request.data_section(), *overlays]
        config = merge_layers(layers, method=step.use)
        config = apply_overrides(config, [*common, *own.get(step.name, ())])
        config = _with_splits(step, config, demanded.get(step.name, set()))
        planned[step.name] = _planned(step, config, planned, views, request)
    set_run_command(request.command("run"))
    return RecipePlan(recipe, request, list(planned.values()))


def _splits_read(steps: Sequence[RecipeStep]) -> dict[str, set[str]]:
    """Splits that others read of each step's outputs."""
    found: dict[str, set[str]] = {}
    for step in steps:
        for port, source in () if step.is_imported else step.sources():
            found.setdefault(source, set()).update(step.spec.reads[port].splits)
    return found


def _with_splits(step: RecipeStep, config: dict[str, Any], read: set[str]) -> dict[str, Any]:
    """The configuration of a step, with the splits that it writes only because they are read."""
    if step.is_imported:
        return config
    demanded = sorted({split for write in step.spec.writes.values() for split in write.on_demand} & read)
    return {**config, "data": {**(config.get("data") or {}), "splits": demanded}} if demanded else config


def _own_layers(step: RecipeStep, recipe: Recipe) -> list[Mapping[str, Any]]:
    if step.is_imported:
        return list(recipe.layers)
    file = get_method(step.use).config
    own = {"per_method": {step.use: step.settings}}
    return [*([read_yaml(file)] if file else []), *recipe.layers, own]


def _planned(
    step: RecipeStep, config: dict[str, Any], planned: Mapping[str, PlannedStep], views: DataViews, request: Request
) -> PlannedStep:
    if step.is_imported:
        return PlannedStep(step, None, views.of(config))
    found = {port: _address(step, port, source, planned) for port, source in step.reads.items()}
    inputs = {port: address for port, address in found.items() if address is not None}
    config = {
        **config,
        "model": {"class_path": step.spec.task, "init_args": dict((config.get("model") or {}).get("init_args") or {})},
        "data": {**(config.get("data") or {}), "method": step.use, "step": step.name, "inputs": inputs},
    }
    check_run_config(config)
    check_arguments(config, step=step.name)
    _choose_weights(config, step, request)
    check_background(config, step=step.name)
    return PlannedStep(step, StepIdentity(config, views), views.of(config))


def _choose_weights(config: Mapping[str, Any], step: RecipeStep, request: Request) -> None:
    """Weights of a step that starts from a backbone: those that the command line names, or that are registered."""
    arguments, files = config["model"]["init_args"], registered(request.workspace)
    backbone, wants = arguments.get("backbone", AUTO), can_download(config)
    if request.weights and (wants or arguments.get("pretrained") is True):
        arguments.update(named_weights(request.weights, backbone, step=step.name, files=files))
    elif request.download and wants:
        arguments["pretrained"] = True
    elif wants and backbone == AUTO and step.use == "frozen" and FROZEN in files:
        arguments.update(backbone=FROZEN, pretrained=str(files[FROZEN]))


def _address(step: RecipeStep, port: str, source: str, planned: Mapping[str, PlannedStep]) -> str | None:
    """What a step reads at a port: an address, the name of a run, or `truth`; None for weights that an import lacks."""
    if source == TRUTH:
        return TRUTH
    name = source.partition(".")[0]
    steps = {key: one.step for key, one in planned.items()}
    kind = kind_read(step.spec.reads[port].kinds, source, steps, reader=f"{step.name}.{port}")
    producer = planned[name]
    if kind is not None:
        return producer.address(kind)
    if producer.identity is None and step.spec.reads[port].optional:
        return None
    if producer.identity is None:
        raise ConfigError(f"{step.name}.{port} reads the weights of {name}, but {IMPORTED} artifacts have none.")
    return producer.identity.run


def _by_step(overrides: Sequence[str], steps: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all steps, and those of one: `--cam.lr 1` is `--model.init_args.lr 1` of the step `cam`."""
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for option in split_options(overrides):
        if not option.name.startswith("--"):
            raise ConfigError(f"Expected an override like --cam.lr 0.01, but got {option.words[0]!r}.")
        first, *path = option.keys
        if first in SECTIONS:
            common += option.words
        elif first in steps and path:
            prefix = "--" if path[0] in SECTIONS else "--model.init_args."
            own.setdefault(first, []).extend([option.words[0].replace(f"--{first}.", prefix, 1), *option.words[1:]])
        else:
            known = dict.fromkeys((*steps, *SECTIONS))
            raise ConfigError(
                f"Unknown section or step {first!r} in override {option.words[0]!r}. {did_you_mean(first, known)}"
            )
    return common, own
