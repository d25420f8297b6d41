"""What a command line asks for: which recipe, on which data, with which changes; the same words for every command."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_lightning.config import data_file, find_config, has_data_file, read_yaml, split_options
from dhr_lightning.data.registry import DATASETS, resolve_dataset
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.recipe import Recipe, load_recipe, shipped_recipes

BUILTIN = "microworld"


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        recipe: name or file; default: `quickstart` for the built-in data, `no_background` for data without background,
            `frozen` for photos of one's own, `dhr` for benchmarks.
        data: name of a dataset, a YAML file, or a folder of photos with tags.
        root: folder of the dataset, instead of the one in its configuration.
        workspace: folder that holds `artifacts/`, `runs/` and `reports/`.
        overlays: files merged last.
        swaps: method by step.
        drops: steps to leave out.
        overrides: `--a.b value` for all steps, `--STEP.a.b value` for one.
        outputs: steps that are wanted, instead of the recipe's own.
        download: take pretrained weights by name for every step whose backbone has none.
        weights: file or name of pretrained weights for every step that starts from a backbone of its own.
    """

    recipe: str | None = None
    data: str = BUILTIN
    root: str | None = None
    workspace: str | None = None
    overlays: tuple[str, ...] = ()
    swaps: Mapping[str, str] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    download: bool = False
    weights: str | None = None

    def data_section(self) -> dict[str, Any]:
        """The `data` section that `--data`, `--root` and `--workspace` give."""
        return data_section(self.data, self.root, self.workspace)

    def load(self) -> Recipe:
        """The recipe with its swaps and drops.

        Raises:
            ConfigError: if something in it does not fit.
        """
        recipe = load_recipe(self.recipe or self.default_recipe())
        for step, method in self.swaps.items():
            recipe = recipe.swap(step, method)
        for step in self.drops:
            recipe = recipe.drop(step)
        return replace(recipe, outputs=self.outputs) if self.outputs else recipe

    def default_recipe(self) -> str:
        """Recipe for this data where none is named."""
        return self.choose_recipe()[0]

    def choose_recipe(self) -> tuple[str, str]:
        """Recipe for this data where none is named, and why."""
        if self.data == BUILTIN:
            return "quickstart", "the built-in data"
        info = resolve_dataset(self.data_section()["data"])
        if not info.classes.has_background:
            return "no_background", "every pixel belongs to a class"
        if info.own_classes:
            return "frozen", "photos of your own: frozen features and light heads gave the best masks on photos here"
        return "dhr", "a benchmark: the method as published"

    def words(self, *options: str) -> list[str]:
        """The request as arguments of a command, without what concerns one run only; inverse of `to_request`.

        Args:
            options: more of them, before the overrides.
        """
        words = [self.recipe] if self.recipe else []
        for name, value in (("data", self.data if self.data != BUILTIN else None), ("root", self.root),
                            ("workspace", self.workspace)):  # fmt: skip
            words += [f"--{name}", value] if value else []
        words += ["--weights", self.weights] if self.weights else []
        words += ["--overlay", *self.overlays] if self.overlays else []
        words += ["--swap", *(f"{step}={method}" for step, method in self.swaps.items())] if self.swaps else []
        words += ["--drop", *self.drops] if self.drops else []
        words += ["--download"] if self.download else []
        return [*words, *options, *(["--", *self.overrides] if self.overrides else [])]

    def command(self, name: str, *options: str) -> str:
        """A command about this request, as a shell takes it."""
        return shlex.join(["python", "-m", "dhr_lightning", name, *self.words(*options)])


def names_folder(text: str) -> bool:
    """Whether a word means a folder; a recipe of this package wins over one of its name, which is `./NAME`."""
    return Path(text).is_dir() and text not in shipped_recipes()


def data_section(data: str, root: str | None = None, workspace: str | None = None) -> dict[str, Any]:
    """A configuration with the `data` section that command-line options give.

    Args:
        data: name of a dataset, whose file in `configs/data/` is read if there is one, a YAML file, or a folder of
            photos with tags.
        root: folder of the dataset, instead of the one in its configuration.
        workspace: folder that holds `artifacts/` and `runs/`.
    """
    if Path(data).is_dir():
        section: dict[str, Any] = {"data": {"dataset": "folder", "root": data}}
    elif data in DATASETS and not has_data_file(data):  # its own defaults will do
        section = {"data": {"dataset": data}}
    else:
        section = read_yaml(find_config(data_file(data)))
    chosen = {name: value for name, value in (("root", root), ("workspace", workspace)) if value}
    return {**section, "data": {**(section.get("data") or {}), **chosen}}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command about a recipe shares."""
    parser.add_argument(
        "recipe", nargs="?", help=f"a recipe ({', '.join(shipped_recipes())}) or a YAML file (default: quickstart for "
        "the built-in data, frozen for your own photos, dhr for benchmarks)",
    )  # fmt: skip
    add_data_options(parser)
    _several(parser, "--overlay", "FILE", "configurations merged last")
    _several(parser, "--swap", "STEP=METHOD", "another method for a step")
    _several(parser, "--drop", "STEP", "leave steps out")
    _several(
        parser, "--set", "A.B=VALUE",
        "settings of all steps (trainer.max_epochs=2) or of one (cam.scales=[1.0]); --STEP.A.B VALUE says the same",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE|NAME", help="pretrained weights of every step that has none yet")
    parser.add_argument("--download", action="store_true",
                        help="pretrained: true for every step whose backbone has no weights")  # fmt: skip


def _several(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    """An option of one or more values that may be given again."""
    parser.add_argument(name, nargs="+", action="extend", default=[], metavar=metavar, help=text)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command about a dataset shares."""
    text = "a dataset, a YAML file, or a folder of photos (default: microworld)"
    parser.add_argument("--data", default=BUILTIN, metavar="NAME|FILE|FOLDER", help=text)
    parser.add_argument("--root", metavar="DIR", help="folder of the dataset (default: the one in its configuration)")
    parser.add_argument(
        "--workspace", metavar="DIR", help="folder that holds artifacts/, runs/ and reports/ (default: .)"
    )


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell options from overrides: `--a.b value` anywhere, and everything after `--`."""
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    options: list[str] = []
    overrides: list[str] = []
    for option in split_options(given[:place]):
        (overrides if option.name.startswith("--") and len(option.keys) > 1 else options).extend(option.words)
    overrides += given[place + 1 :]
    return options, overrides


def to_request(options: argparse.Namespace, overrides: Sequence[str]) -> Request:
    """The request that parsed options make.

    Raises:
        ConfigError: if a swap or setting is malformed.
    """
    settings = [f"--{text}" for text in options.set]
    for text in options.set:
        if "=" not in text:
            raise ConfigError(f"Expected --set A.B=VALUE, but got {text!r}.")
    return Request(
        options.recipe,
        options.data,
        options.root,
        options.workspace,
        tuple(options.overlay),
        dict(_pair(text) for text in options.swap),
        tuple(options.drop),
        (*settings, *overrides),
        download=options.download,
        weights=options.weights,
    )


def _pair(text: str) -> tuple[str, str]:
    name, has_value, value = text.partition("=")
    if not has_value or not value:
        raise ConfigError(f"Expected --swap STEP=METHOD, but got {text!r}. A recipe comes before the options.")
    return name, value
