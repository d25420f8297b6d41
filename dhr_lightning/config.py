"""Resolve configuration files and overrides to one plain dictionary, without importing torch."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dhr_lightning.errors import ConfigError

PER_TASK = "per_task"
TASK_NAMES = ("CAMTask", "USSTask", "WSSTask", "MARSTask", "DHRTask")
SECTIONS = ("model", "data", "trainer", "seed_everything")
# What cannot change an artifact's content is left out of its digest.
_IGNORED_DATA = ("workspace", "root", "num_workers", "pin_memory", "predict_batch_size")
_IGNORED_TRAINER = (
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


def own_overrides(overrides: Sequence[str], name: str, steps: Sequence[str]) -> list[str]:
    """Overrides that concern one step: those without a step's name, and its own without the name."""
    kept, items = [], list(overrides)
    while items:
        item = items.pop(0)
        follows = [] if "=" in item or not items or items[0].startswith("--") else [items.pop(0)]
        first = item[2:].split(".")[0]
        if first == name:
            kept += ["--" + item[3 + len(name) :], *follows]
        elif first not in steps:
            kept += [item, *follows]
    return kept


def check_stage_config(config: Mapping[str, Any]) -> None:
    """Refuse what a stage cannot run, even where everything is up to date.

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
            f"A stage runs on one device, but trainer.devices is {devices} and trainer.num_nodes "
            f"{trainer.get('num_nodes', 1)}. Use `python -m dhr_lightning fit` and `predict` for a step on several."
        )


def resolve(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge configuration files left to right, pick the task's own section, then apply overrides.

    A file may hold a section `per_task: {CAMTask: {...}, ...}`: an overlay such as `quickstart.yaml` says there what
    differs between tasks. The parts named like the final `model.class_path` are merged last, in the order of the files.

    Returns:
        A plain dictionary in the layout of the command line: `model`, `data`, `trainer`, `seed_everything`.

    Raises:
        ConfigError: if a file is missing or broken, `per_task` names an unknown task, or an override is malformed.
    """
    config: dict[str, Any] = {}
    sections: list[Mapping[str, Any]] = []
    for path in paths:
        content = read_yaml(find_config(path))
        sections.append(_per_task(content.pop(PER_TASK, None) or {}, path))
        config = merge(config, content)
    task = str((config.get("model") or {}).get("class_path", "")).rpartition(".")[2]
    for section in sections:
        config = merge(config, section.get(task) or {})
    return apply_overrides(config, overrides)


def _per_task(section: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    unknown = sorted(set(section) - set(TASK_NAMES))
    if unknown:
        raise ConfigError(f"Unknown task {unknown[0]!r} in {PER_TASK} of {path}. Known: {', '.join(TASK_NAMES)}.")
    return section


def output_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what an artifact contains."""
    data = {key: value for key, value in config.get("data", {}).items() if key not in _IGNORED_DATA}
    trainer = {key: value for key, value in config.get("trainer", {}).items() if key not in _IGNORED_TRAINER}
    return {"model": config.get("model", {}), "data": data, "trainer": trainer, "seed": config.get("seed_everything")}
