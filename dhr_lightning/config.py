"""Resolve configuration files and overrides to one plain dictionary, without importing torch."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dhr_lightning.errors import ConfigError
from dhr_lightning.steps import methods

PER_METHOD, PER_DATASET = "per_method", "per_dataset"
SECTIONS = ("model", "data", "trainer", "seed_everything")
# What cannot change an artifact's content is left out of its digest.
IGNORED_DATA = ("workspace", "root", "num_workers", "pin_memory", "predict_batch_size", "method", "step", "inputs")
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


def find_config(name: str | Path) -> Path:
    """Locate a configuration file: as given, or among those shipped with the package.

    Raises:
        ConfigError: if there is no such file; names the shipped ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    package = Path(__file__).resolve().parent
    relative = Path(*path.parts[1:]) if path.parts and path.parts[0] == "configs" else path
    for folder in (package.parent / "configs", package / "_configs"):
        if (folder / relative).is_file():
            return folder / relative
    method = methods().get(relative.stem) if relative.parent in (Path("methods"), Path()) else None
    if method is not None and method.config is not None and relative.suffix == ".yaml":
        return method.config
    shipped = sorted(p.relative_to(package.parent).as_posix() for p in (package.parent / "configs").rglob("*.yaml"))
    raise ConfigError(f"There is no configuration file {str(name)!r}. Shipped: {', '.join(shipped)}.")


def data_file(dataset: str) -> str:
    """Configuration file of a dataset: a name means a file of `configs/data`, a path to a YAML file is itself."""
    return dataset if Path(dataset).suffix in (".yaml", ".yml") else f"data/{dataset}.yaml"


def dataset_argument(file: str) -> str:
    """Inverse of `data_file`: what `--dataset` and `DATASET=` take."""
    path = Path(file)
    return path.stem if path.parent == Path("data") else file


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Expected a mapping in {path}, but got {type(content).__name__}.")
    return content


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Deep-merge two mappings, `top` wins; a key `name+` appends its list to the list `name`.

    A `class_path` that changes drops the arguments of the class it replaces.
    """
    merged = copy.deepcopy(dict(base))
    if "class_path" in top and "class_path" in merged and top["class_path"] != merged["class_path"]:
        merged.pop("init_args", None)
    for key, value in top.items():
        if key.endswith("+"):
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *value]
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def apply_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply command-line overrides `--a.b value` or `--a.b=value` to a configuration.

    Raises:
        ConfigError: if an override does not start with `--`, has no value, or its value is not valid YAML.
    """
    result = copy.deepcopy(dict(config))
    for name, text in _pairs(overrides):
        *parents, leaf = name.split(".")
        node = result
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"Override --{name} goes through {parent!r}, which is not a section.")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value {text!r} of override --{name} is not valid YAML: {error}") from error
    return result


def _pairs(overrides: Sequence[str]) -> Iterable[tuple[str, str]]:
    items = list(overrides)
    while items:
        item = items.pop(0)
        if not item.startswith("--"):
            raise ConfigError(f"Expected an override like --model.init_args.lr 0.01, but got {item!r}.")
        name, has_value, text = item[2:].partition("=")
        if not has_value:
            if not items or items[0].startswith("--"):
                raise ConfigError(f"Override --{name} has no value. Write --{name} VALUE.")
            text = items.pop(0)
        yield name, text


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
            f"A recipe runs on one device, but trainer.devices is {devices} and trainer.num_nodes "
            f"{trainer.get('num_nodes', 1)}. Use `python -m dhr_lightning fit` and `predict` for a step on several."
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
    layers = [read_yaml(find_config(path)) for path in paths]
    name = method or next((str((one.get("data") or {})["method"]) for one in reversed(layers)
                           if (one.get("data") or {}).get("method")), None)  # fmt: skip
    return apply_overrides(merge_layers(layers, method=name), overrides)


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
