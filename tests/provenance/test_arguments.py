"""Arguments of constructors, read from source."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.provenance import arguments
from dhr_lightning.provenance.arguments import constructor_arguments
from dhr_lightning.steps import methods

TASKS = sorted({method.spec.task for method in methods().values()})
OTHERS = ["dhr_lightning.data.datamodule.WSSSDataModule", "lightning.Trainer"]
FILES = {
    "__init__.py": "from .tasks import Second\nfrom nowhere import Absent\n",
    "below/__init__.py": "from ..bases import *\nfrom ..bases import First as Base\n",
    "bases.py": "class First:\n    def __init__(self, one, /, two=2, *, three): ...\n",
    "tasks.py": """
import other_package
import other_package.below as below
from other_package import bases as given, nowhere
from .bases import First

class Second(given.First):
    def __init__(self, four, **options):
        super().__init__(four, **options)

class Third(Second): ...
class Both(Second, below.Base):
    def __init__(self, *, five, **rest): super().__init__(**rest)
class Ends(Second):
    def __init__(self, six): super().__init__(1, three=six)
class Uses(First):
    def __init__(self, **options):
        super().__init__(**options)
        self.extra = options.get("extra")
class Elsewhere(First):
    def __init__(self, **options):
        super().__init__(3)
        self.part = Second(**options)
class Unused(First):
    def __init__(self, **options): super().__init__(3)
class Named(other_package.bases.First): ...
class Made(make()): ...
class Missing(nowhere.Base): ...
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package, which cannot be imported without harm."""
    root = tmp_path / "other_package"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\nraise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    constructor_arguments.cache_clear()
    arguments._read.cache_clear()
    return root


def taken(task: Callable[..., Any]) -> set[str]:
    """Arguments that a constructor really takes; ours hand their `**options` on to the next class."""
    names: set[str] = set()
    for one in (one for one in inspect.getmro(task) if "__init__" in vars(one)):
        parameters = list(inspect.signature(one.__init__).parameters.values())[1:]
        names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names


@pytest.mark.parametrize("path", [*TASKS, *OTHERS])
def test_the_source_says_what_the_constructor_takes(path: str):
    module, _, name = path.rpartition(".")
    assert constructor_arguments(path) == taken(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("bases.First", "one two three"),
        ("Second", "four one two three"),
        ("tasks.Third", "four one two three"),
        ("tasks.Both", "five four one two three"),
        ("tasks.Ends", "six"),
        ("below.Base", "one two three"),
    ],
)
def test_arguments_are_those_of_all_classes_that_options_reach(package: Path, name: str, names: str):
    assert constructor_arguments(f"other_package.{name}") == set(names.split())
    assert "other_package" not in sys.modules


@pytest.mark.parametrize(
    "name",
    ["tasks.Uses", "tasks.Elsewhere", "tasks.Unused", "tasks.Made", "tasks.Missing", "tasks.Nobody", "Absent", "a.B"],
)
def test_where_the_source_does_not_tell_nothing_is_said(package: Path, name: str):
    assert constructor_arguments(f"other_package.{name}") is None
    assert constructor_arguments("no_such_package.Task") is None
