"""Functions and tests that the documentation names exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
FUNCTIONS = sorted(set(re.findall(r"`((?:ops|models|tasks|data|losses|callbacks)\.[\w.]+)`", METHOD)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", METHOD)))


def test_something_is_named():
    assert len(FUNCTIONS) > 20
    assert len(TESTS) > 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_exist(name: str):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        path = ROOT / "dhr_lightning" / Path(*parts[:cut])
        if path.with_suffix(".py").is_file():
            break
    found = importlib.import_module(".".join(["dhr_lightning", *parts[:cut]]))
    for attribute in parts[cut:]:
        found = getattr(found, attribute)


@pytest.mark.parametrize("name", TESTS)
def test_tests_exist(name: str):
    path, _, function = name.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8") if function else (ROOT / path).is_file()
