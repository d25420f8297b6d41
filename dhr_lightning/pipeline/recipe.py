"""A recipe: named steps, the method of each, what it reads and what it sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_lightning.config import SECTIONS, find_config, in_sections, merge, read_yaml
from dhr_lightning.errors import ConfigError
from dhr_lightning.steps import TRUTH, StepSpec, did_you_mean, get_method

SCHEMA = 1
IMPORTED = "imported"  # `use: imported/NAME`: artifacts that `import` brought in, instead of a method
_KEYS = ("schema", "about", "extends", "steps", "outputs", "set", "per_method", "per_dataset")


@dataclass(frozen=True)
class RecipeStep:
    """One step of a recipe.

    Args:
        name: within the recipe.
        use: method, or `imported/NAME`.
        reads: step, `STEP.KIND` or `truth`, by port of the method.
        settings: sections `model`, `data`, `trainer`, `seed_everything` that differ from the method's own.
    """

    name: str
    use: str
    reads: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_imported(self) -> bool:
        """Whether its artifacts were imported."""
        return self.use.startswith(IMPORTED + "/")

    @property
    def spec(self) -> StepSpec:
        """What its method reads and writes.

        Raises:
            ConfigError: if there is no such method.
        """
        return get_method(self.use).spec

    def sources(self) -> Iterator[tuple[str, str]]:
        """`(port, step)` of every input that another step writes."""
        return ((port, source.partition(".")[0]) for port, source in self.reads.items() if source != TRUTH)


@dataclass(frozen=True)
class Recipe:
    """Steps and outputs; see `load_recipe`.

    Args:
        name: file name without its suffix, and what was swapped and dropped.
        about: one line for people.
        steps: by name, in the order of the file.
        outputs: steps that are wanted; only they and their ancestors run.
        layers: sections that hold for all steps, with `per_method` and `per_dataset`; later ones win.
    """

    name: str
    about: str
    steps: Mapping[str, RecipeStep]
    outputs: tuple[str, ...]
    layers: tuple[Mapping[str, Any], ...] = ()

    def swap(self, step: str, use: str) -> "Recipe":
        """The recipe with another method for a step, which reads the same where it has the same ports.

        The settings of the step were meant for the method before and are dropped; those for a method of that name stay.

        Raises:
            ConfigError: for an unknown step or method.
        """
        before = self._step(step, "--swap")
        after = RecipeStep(step, use)
        if not after.is_imported:
            reads = {port: source for port, source in before.reads.items() if port in after.spec.reads}
            after = replace(after, reads=reads)
        return replace(self, name=f"{self.name}+{step}={use}", steps={**self.steps, step: after})

    def drop(self, step: str) -> "Recipe":
        """The recipe without a step: what stands in for its outputs is read in their place.

        Raises:
            ConfigError: for an unknown step, or one that nothing can stand in for.
        """
        dropped = self._step(step, "--drop")
        steps = {name: self._without(other, dropped) for name, other in self.steps.items() if name != step}
        outputs = tuple(name for name in self.outputs if name != step) or tuple(
            source for _, source in dropped.sources()
        )
        return replace(self, name=f"{self.name}-{step}", steps=steps, outputs=outputs)

    def _without(self, reader: RecipeStep, dropped: RecipeStep) -> RecipeStep:
        reads = dict(reader.reads)
        for port, source in reader.sources():
            if source != dropped.name:
                continue
            if reader.spec.reads[port].optional:
                del reads[port]
                continue
            stand_in = None if dropped.is_imported else _stand_in(reader, port, dropped)
            if stand_in is None:
                raise ConfigError(
                    f"Step {dropped.name!r} cannot be dropped: {reader.name} reads its {port}, and nothing stands in "
                    f"for it. Swap it (--swap {dropped.name}=METHOD), or drop {reader.name}, too."
                )
            reads[port] = stand_in
        return replace(reader, reads=reads)

    def _step(self, name: str, option: str) -> RecipeStep:
        if name not in self.steps:
            raise ConfigError(f"{option} names the step {name!r}, which recipe {self.name} lacks. "
                              f"{did_you_mean(name, self.steps)}")  # fmt: skip
        return self.steps[name]

    def ordered(self) -> list[RecipeStep]:
        """The outputs and their ancestors, each after what it reads.

        Raises:
            ConfigError: for a cycle, an input that nobody writes, or an unknown method or port.
        """
        order: list[RecipeStep] = []
        for output in self.outputs:
            self._visit(output, order, ())
        return order

    def _visit(self, name: str, order: list[RecipeStep], path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"The steps of recipe {self.name} form a cycle: {' -> '.join((*path, name))}.")
        if any(step.name == name for step in order):
            return
        if name not in self.steps:
            reader = path[-1] if path else "outputs"
            raise ConfigError(
                f"{reader} of recipe {self.name} reads {name!r}, which is no step. {did_you_mean(name, self.steps)}"
            )
        step = _followed(self.steps[name], self.steps)
        for _, source in step.sources():
            self._visit(source, order, (*path, name))
        if not step.is_imported:
            _check_reads(step, self.steps)
        order.append(step)


def _followed(step: RecipeStep, steps: Mapping[str, RecipeStep]) -> RecipeStep:
    """The step with the weights that it takes from the step of another input, see `steps.Read.follows`."""
    if step.is_imported:
        return step
    more = {}
    for port, read in step.spec.reads.items():
        source = steps.get(step.reads.get(read.follows, "").partition(".")[0])
        if port not in step.reads and source is not None and not source.is_imported and source.spec.trains_backbone:
            more[port] = source.name
    return replace(step, reads={**step.reads, **more}) if more else step


def _stand_in(reader: RecipeStep, port: str, dropped: RecipeStep) -> str | None:
    kinds = reader.spec.reads[port].kinds
    forwards = dropped.spec.forwards
    return next((dropped.reads.get(forwards[kind]) for kind in kinds if kind in forwards), None)


def _check_reads(step: RecipeStep, steps: Mapping[str, RecipeStep]) -> None:
    ports = step.spec.reads
    for port, source in step.reads.items():
        if port not in ports:
            raise ConfigError(f"Step {step.name} has no input {port!r}. {did_you_mean(port, ports)}")
        if source != TRUTH:
            kind_read(ports[port].kinds, source, steps, reader=f"{step.name}.{port}")
        elif not ports[port].truth:
            raise ConfigError(f"Step {step.name} cannot read the ground truth as {port}: it is for evaluation only.")
    missing = [port for port, read in ports.items() if port not in step.reads and not read.optional]
    if missing:
        wanted = " or ".join(ports[missing[0]].kinds)
        raise ConfigError(
            f"Step {step.name} ({step.use}) reads {missing[0]} ({wanted}), but the recipe does not say from which "
            f"step. Add `reads: {{{missing[0]}: STEP}}`."
        )


def kind_read(kinds: Sequence[str], source: str, steps: Mapping[str, RecipeStep], *, reader: str) -> str | None:
    """Kind of artifact that is read from a source `STEP` or `STEP.KIND`; None for weights.

    Args:
        kinds: that will do, best first; none for weights.
        source: as the recipe has it.
        steps: of the recipe.
        reader: for the message.

    Raises:
        ConfigError: if the step writes none of them.
    """
    name, _, chosen = source.partition(".")
    step = steps[name]
    if step.is_imported:
        return chosen or (kinds[0] if kinds else None)
    if not kinds:
        if not step.spec.fits:
            raise ConfigError(f"{reader} reads the weights of {name}, but {step.use} has none.")
        return None
    wanted = (chosen,) if chosen else kinds
    found = next((kind for kind in wanted if kind in step.spec.writes and kind in kinds), None)
    if found is None:
        raise ConfigError(
            f"{reader} reads {' or '.join(kinds)} from {source}, but {step.use} writes {', '.join(step.spec.writes)}."
        )
    return found


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe: a shipped one by name, or a YAML file.

    Keys: `schema: 1`, `about`, `extends` (another recipe that this one changes), `steps` (`{use, reads, set}` by name;
    null takes an inherited one out), `outputs`, `set` (sections for all steps), `per_method` and `per_dataset`.

    Raises:
        ConfigError: if it cannot be read, or is of another schema.
    """
    path = find_recipe(name)
    content = _extended(path, ())
    steps = {key: _parse_step(key, value, path) for key, value in (content.get("steps") or {}).items() if value}
    if not steps:
        raise ConfigError(f"Recipe {path} has no steps. Name them below `steps:`, or another recipe after `extends:`.")
    outputs = content.get("outputs") or [name for name in steps if not _is_read(name, steps)]
    layer = {**(content.get("set") or {}), **{k: content[k] for k in ("per_method", "per_dataset") if k in content}}
    shipped = path.parent.name if path.parent.name != "recipes" else ""
    label = f"{shipped}/{path.stem}" if shipped and path.parent.parent.name == "recipes" else path.stem
    return Recipe(label, str(content.get("about", "")), steps, tuple(outputs), (layer,))


def find_recipe(name: str | Path) -> Path:
    """File of a recipe; see `load_recipe`."""
    if Path(name).suffix in (".yaml", ".yml"):
        return find_config(name)
    try:
        return find_config(f"recipes/{name}.yaml")
    except ConfigError as error:
        known = dict.fromkeys(shipped_recipes())
        raise ConfigError(f"Unknown recipe {str(name)!r}. {did_you_mean(str(name), known)}") from error


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = find_config("recipes/dhr.yaml").parent
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"Recipes extend each other in a circle: {' -> '.join(str(one) for one in (*seen, path))}.")
    content = read_yaml(path)
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise ConfigError(f"Unknown key {unknown[0]!r} in recipe {path}. Known: {', '.join(_KEYS)}.")
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path} has schema {content.get('schema')!r}, but this version reads recipes of schema {SCHEMA}. Write "
            f"`schema: {SCHEMA}` if it is a recipe of this version, or take the one that ships with it."
        )
    base = content.get("extends")
    return merge(_extended(find_recipe(base), (*seen, path)), content) if base else content


def _parse_step(name: str, content: Any, path: Path) -> RecipeStep:  # noqa: ANN401 - what YAML gave
    if not isinstance(content, Mapping) or not isinstance(content.get("use"), str):
        raise ConfigError(f"Step {name!r} of {path} needs `use: METHOD`, but got {content!r}.")
    unknown = sorted(set(content) - {"use", "reads", "set"})
    if unknown:
        raise ConfigError(f"Unknown key {unknown[0]!r} in step {name!r} of {path}. Known: use, reads, set.")
    if name in SECTIONS or "." in name or "/" in name:
        raise ConfigError(f"A step cannot be called {name!r} ({path}): overrides could not tell it from a setting.")
    reads = {port: str(source) for port, source in (content.get("reads") or {}).items() if source is not None}
    return RecipeStep(name, content["use"], reads, in_sections(content.get("set") or {}))


def _is_read(name: str, steps: Mapping[str, RecipeStep]) -> bool:
    return any(source == name for step in steps.values() for _, source in step.sources())
