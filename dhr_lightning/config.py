"""Resolve configuration files and overrides to one plain dictionary, without importing torch."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dhr_lightning.errors import ConfigError
from dhr_lightning.steps import did_you_mean, methods

PER_METHOD, PER_DATASET = "per_method", "per_dataset"
SECTIONS = ("model", "data", "trainer", "seed_everything")
# What cannot change an artifact's content is left out of its digest.
IGNORED_DATA = (
    "workspace",
    "root",
    "num_workers",
    "pin_memory",
    "predict_batch_size",
    "method",
    "step",
    "inputs",
    "splits",
)
# What concerns training batches only, so nothing that is made without a fit.
PREPARATION_DATA = ("batch_size", "crop_size", "scale", "flip", "jitter", "interpolation", "seed")
IGNORED_TRAINER = (
    "accelerator",
    "devices",
    "num_nodes",
    "logger",
    "log_every_n_steps",
    "enable_progress_bar",
    "enable_model_summary",
    "default_root_dir",
    "profiler",
    "num_sanity_val_steps",
    "check_val_every_n_epoch",
)

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the files of a clone's folder `configs` within the package.
_SHIPPED = _PACKAGE / "_configs" if (_PACKAGE / "_configs").is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str | Path) -> Path:
    """Locate a configuration file: as given, or among those shipped with the package.

    Raises:
        ConfigError: if there is no such file; names the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    relative = Path(*path.parts[1:]) if path.parts and path.parts[0] == "configs" else path
    if (_SHIPPED / relative).is_file():
        return _SHIPPED / relative
    method = methods().get(relative.stem) if relative.parent in (Path("methods"), Path()) else None
    if method is not None and method.config is not None and relative.suffix == ".yaml":
        return method.config
    shipped = sorted(f"configs/{file.relative_to(_SHIPPED).as_posix()}" for file in _SHIPPED.rglob("*.yaml"))
    raise ConfigError(f"There is no configuration file {str(name)!r}. Shipped: {', '.join(shipped)}.")


def has_data_file(dataset: str) -> bool:
    """Whether a configuration of a dataset is shipped, `configs/data/NAME.yaml`."""
    return (_SHIPPED / "data" / f"{dataset}.yaml").is_file()


def data_file(dataset: str) -> str:
    """Configuration file of a dataset: a name means a file of `configs/data`, a path to a YAML file is itself."""
    return dataset if Path(dataset).suffix in (".yaml", ".yml") else f"data/{dataset}.yaml"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping.

    Raises:
        ConfigError: if it is none, or names an unknown method.
    """
    text = path.read_text(encoding="utf-8")
    try:
        repeated = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if repeated is not None:  # YAML would take the last without a word
        line = repeated.start_mark.line + 1
        raise ConfigError(f"{path} has the key {repeated.value!r} again in line {line}. Keep one of the two.")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Expected a mapping in {path}, but got {type(content).__name__}.")
    unknown = sorted(set(content.get(PER_METHOD) or {}) - set(methods()))
    if unknown:
        raise ConfigError(
            f"Unknown method {unknown[0]!r} in {PER_METHOD} of {path}. {did_you_mean(unknown[0], methods())}"
        )
    return content


def _repeated_key(node: Any) -> Any:  # noqa: ANN401 - nodes of PyYAML, which has no types
    """The first key that stands twice in one mapping, or None."""
    below: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and key.value != "<<":
                return key
            seen.add(str(key.value))
            below.append(value)
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    return next((found for one in below if (found := _repeated_key(one)) is not None), None)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Deep-merge two mappings, `top` wins; a key `name+` appends its list to the list `name`.

    A `class_path` that changes drops the arguments of the class it replaces.
    """
    merged = copy.deepcopy(dict(base))
    if "class_path" in top and "class_path" in merged and top["class_path"] != merged["class_path"]:
        merged.pop("init_args", None)
    for key, value in top.items():
        if isinstance(key, str) and key.endswith("+"):
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *value]
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


class Option(NamedTuple):
    """One option of a command line: `--a.b value`, `--a.b=value`, or a word alone.

    Attributes:
        name: the word before any `=`, such as `--a.b`.
        value: text after the `=`, or the next word unless it begins with `--`; None if there is neither.
        words: the one or two words as they were given.
    """

    name: str
    value: str | None
    words: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """`--a.b` as `["a", "b"]`."""
        return self.name.removeprefix("--").split(".")


def split_options(arguments: Sequence[str]) -> Iterator[Option]:
    """Read a command line option by option; `words` of all of them together are the command line again."""
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, is_one_word, value = word.partition("=")
        if is_one_word:
            yield Option(name, value, (word,))
        elif rest and not rest[0].startswith("--"):
            yield Option(name, rest[0], (word, rest.pop(0)))
        else:
            yield Option(name, None, (word,))


def apply_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply command-line overrides `--a.b value` or `--a.b=value` to a configuration.

    Raises:
        ConfigError: if an override does not start with `--`, has no value, or its value is not valid YAML.
    """
    result = copy.deepcopy(dict(config))
    for option in split_options(overrides):
        if not option.name.startswith("--"):
            raise ConfigError(f"Expected an override like --model.init_args.lr 0.01, but got {option.words[0]!r}.")
        if option.value is None:
            raise ConfigError(f"Override {option.name} has no value. Write {option.name} VALUE.")
        *parents, leaf = option.keys
        node = result
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"Override {option.name} goes through {parent!r}, which is not a section.")
        try:
            node[leaf] = yaml.safe_load(option.value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"The value {option.value!r} of override {option.name} is not valid YAML: {error}"
            ) from error
    return result


def check_run_config(config: Mapping[str, Any]) -> None:
    """Refuse what a recipe cannot run, even where everything is up to date.

    Raises:
        ConfigError: for a section that nothing reads, or more than one device.
    """
    unknown = sorted(set(config) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"Unknown section or step {unknown[0]!r}. Sections: {', '.join(SECTIONS)}.")
    trainer = config.get("trainer") or {}
    devices = trainer.get("devices")
    several = len(devices) > 1 if isinstance(devices, list) else isinstance(devices, int) and devices != 1
    if several or int(trainer.get("num_nodes") or 1) > 1:
        raise ConfigError(
            f"A recipe runs in as many processes as it is started in, but trainer.devices is {devices} and "
            f"trainer.num_nodes {trainer.get('num_nodes', 1)}. Leave them out and start it with `torchrun "
            "--nproc-per-node N -m dhr_lightning run ...`."
        )


def resolve(paths: Sequence[str | Path], overrides: Sequence[str] = (), *, method: str | None = None) -> dict[str, Any]:
    """Merge configuration files left to right, then apply overrides.

    A file may hold `per_method: {cam: {...}, ...}` and `per_dataset: {voc: {...}, ...}`: an overlay such as
    `debug.yaml` says there what differs between methods and datasets.

    Args:
        paths: of YAML files.
        overrides: `--a.b value`.
        method: whose parts count; default: `data.method` of the files.

    Returns:
        A plain dictionary in the layout of the command line: `model`, `data`, `trainer`, `seed_everything`.

    Raises:
        ConfigError: if a file is missing or broken, or an override is malformed.
    """
    layers = [_layer(find_config(path)) for path in paths]
    name = method or next((str((one.get("data") or {})["method"]) for one in reversed(layers)
                           if (one.get("data") or {}).get("method")), None)  # fmt: skip
    return apply_overrides(merge_layers(layers, method=name), overrides)


def _layer(path: Path) -> dict[str, Any]:
    """A file; that of a method says whose it is."""
    owner = next((name for name, one in methods().items() if one.config == path), None)
    content = read_yaml(path)
    return merge({"data": {"method": owner}}, content) if owner else content


def resolve_text(text: str) -> dict[str, Any]:
    """A resolved configuration from its YAML text."""
    return dict(yaml.safe_load(text))


def merge_layers(layers: Sequence[Mapping[str, Any]], *, method: str | None) -> dict[str, Any]:
    """Merge configurations left to right; of each, what holds for all, then its part for the dataset and the method."""
    named = [(layer.get("data") or {}).get("dataset") for layer in layers]
    dataset = next((name for name in reversed(named) if name), None)
    config: dict[str, Any] = {}
    for layer in layers:
        config = merge(config, {name: value for name, value in layer.items() if name not in (PER_METHOD, PER_DATASET)})
        config = merge(config, (layer.get(PER_DATASET) or {}).get(dataset) or {})
        config = merge(config, in_sections((layer.get(PER_METHOD) or {}).get(method) or {}))
    return config


def in_sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a step in full form: what is in no section is an argument of the task.

    `{lr: 0.1, data: {batch_size: 4}}` -> `{model: {init_args: {lr: 0.1}}, data: {batch_size: 4}}`.
    """
    full = {name: value for name, value in settings.items() if name in SECTIONS}
    arguments = {name: value for name, value in settings.items() if name not in SECTIONS}
    return merge(full, {"model": {"init_args": arguments}}) if arguments else full
