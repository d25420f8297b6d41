"""The steps of a recipe with their configurations, and what of them is there; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dhr_lightning.artifacts.store import Status
from dhr_lightning.config import SECTIONS, apply_overrides, check_run_config, find_config, merge_layers, read_yaml
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.recipe import IMPORTED, Recipe, RecipeStep, kind_read
from dhr_lightning.pipeline.request import Request
from dhr_lightning.provenance.identity import DataView, DataViews, StepIdentity
from dhr_lightning.provenance.recorded import recorded_status
from dhr_lightning.provenance.start_checks import can_download, check_background
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
        ids = [record.id for record in self.view.records(split)]
        return store.status(address, split, expected=self.identity.describe(address, split), ids=ids)

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
    views = DataViews()
    planned: dict[str, PlannedStep] = {}
    for step in order:
        layers = [*_own_layers(step, recipe), request.data_section(), *overlays]
        config = merge_layers(layers, method=step.use)
        config = apply_overrides(config, [*common, *own.get(step.name, ())])
        planned[step.name] = _planned(step, config, planned, views, request)
    return RecipePlan(recipe, request, list(planned.values()))


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
    inputs = {port: _address(step, port, source, planned) for port, source in step.reads.items()}
    config = {
        **config,
        "model": {"class_path": step.spec.task, "init_args": dict((config.get("model") or {}).get("init_args") or {})},
        "data": {**(config.get("data") or {}), "method": step.use, "step": step.name, "inputs": inputs},
    }
    check_run_config(config)
    if request.download and can_download(config):
        config["model"]["init_args"]["pretrained"] = True
    check_background(config, step=step.name)
    return PlannedStep(step, StepIdentity(config, views), views.of(config))


def _address(step: RecipeStep, port: str, source: str, planned: Mapping[str, PlannedStep]) -> str:
    """What a step reads at a port: an address, the name of a run, or `truth`."""
    if source == TRUTH:
        return TRUTH
    name = source.partition(".")[0]
    steps = {key: one.step for key, one in planned.items()}
    kind = kind_read(step.spec.reads[port].kinds, source, steps, reader=f"{step.name}.{port}")
    producer = planned[name]
    if kind is not None:
        return producer.address(kind)
    if producer.identity is None:
        raise ConfigError(f"{step.name}.{port} reads the weights of {name}, but {IMPORTED} artifacts have none.")
    return producer.identity.run


def _by_step(overrides: Sequence[str], steps: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all steps, and those of one: `--cam.lr 1` is `--model.init_args.lr 1` of the step `cam`."""
    common: list[str] = []
    own: dict[str, list[str]] = {}
    items = list(overrides)
    while items:
        item = items.pop(0)
        follows = [] if "=" in item or not items or items[0].startswith("--") else [items.pop(0)]
        if not item.startswith("--"):
            raise ConfigError(f"Expected an override like --cam.lr 0.01, but got {item!r}.")
        first, _, rest = item[2:].partition(".")
        if first in SECTIONS or first.partition("=")[0] in SECTIONS:
            common += [item, *follows]
        elif first in steps and rest:
            section = rest.partition(".")[0].partition("=")[0]
            own.setdefault(first, []).extend(
                [f"--{rest}" if section in SECTIONS else f"--model.init_args.{rest}", *follows]
            )
        else:
            known = dict.fromkeys((*steps, *SECTIONS))
            raise ConfigError(f"Unknown section or step {first!r} in override {item!r}. {did_you_mean(first, known)}")
    return common, own
