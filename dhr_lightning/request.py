"""What a stage is, and what its command line asks for."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dhr_lightning.errors import ConfigError


@dataclass(frozen=True)
class Step:
    """One fit and its predictions.

    Args:
        name: short name; that of the task.
        config: configuration file.
        builtin: configuration file for the built-in dataset, where it is another one.
    """

    name: str
    config: str
    builtin: str | None = None


@dataclass(frozen=True)
class Stage:
    """Steps that run one after the other under one name.

    Args:
        name: `stage1_cam`, ...
        about: one line for `--help`.
        steps: in order.
        report: write the report at the end.
    """

    name: str
    about: str
    steps: tuple[Step, ...]
    report: bool = False


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        dataset: name of a file in `configs/data/`, or path of a YAML file.
        overlays: files merged last; default: `quickstart.yaml` for the built-in dataset, none otherwise.
        chosen: another configuration file for a step, by step name.
        overrides: `--a.b value ...` for all steps; `--STEP.a.b value` for one step only.
        force: make everything again.
        download: take pretrained weights by name for every step whose backbone has none.
    """

    dataset: str = "microworld"
    overlays: tuple[str, ...] | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    force: bool = False
    download: bool = False


def parse_request(stage: Stage, arguments: Sequence[str]) -> Request:
    """Read the command line of a stage: options, then overrides after `--`.

    Raises:
        ConfigError: if an option is malformed.
    """
    given = list(arguments)
    split = given.index("--") if "--" in given else len(given)
    options = _parser(stage).parse_args(given[:split])
    overlays = tuple(options.overlay) if options.overlay is not None else None
    chosen = dict(_pair(text) for text in options.config)
    return Request(options.dataset, overlays, chosen, tuple(given[split + 1 :]), options.force, options.download)


def _pair(text: str) -> tuple[str, str]:
    name, has_value, value = text.partition("=")
    if not has_value:
        raise ConfigError(f"Expected --config STEP=FILE, but got {text!r}.")
    return name, value


def _parser(stage: Stage) -> argparse.ArgumentParser:
    steps = ", ".join(step.name for step in stage.steps)
    parser = argparse.ArgumentParser(
        description=f"{stage.name}: {stage.about}. Steps: {steps}.",
        epilog="Overrides follow --, for all steps (-- --data.batch_size 8) or one (-- --dhr.trainer.max_epochs 20).",
    )
    parser.add_argument(
        "--dataset",
        default="microworld",
        help="a file of configs/data, or any YAML file (default: the built-in microworld)",
    )
    parser.add_argument("--overlay", nargs="*", help="files merged last (default: quickstart.yaml for microworld)")
    parser.add_argument("--config", nargs="*", default=[], metavar="STEP=FILE", help="another configuration for a step")
    parser.add_argument(
        "--download", action="store_true", help="pretrained: true for every step whose backbone has no weights"
    )
    parser.add_argument("--force", action="store_true", help="make everything again, even if it is up to date")
    return parser
