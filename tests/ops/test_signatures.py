"""How many parameters the functions of the numeric packages take."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "dhr_lightning"
LONGEST = 8
# public operations whose arguments are all of the field
MAY_BE_LONGER = {"transport_seed", "transport_weights", "transport_plan", "transport_posterior"}


def parameters(function: ast.FunctionDef) -> list[str]:
    every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


@pytest.mark.parametrize("package", ["ops", "models", "losses", "evaluation"])
def test_what_travels_together_is_one_argument(package: str):
    files = sorted((PACKAGE / package).rglob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 5
    assert {f.name for f in functions if len(parameters(f)) > LONGEST} <= MAY_BE_LONGER
    trains = {"keys", "present", "offset", "valid", "foreground"}
    assert not [f.name for f in functions if len(trains & set(parameters(f))) > 2], "take an `ImageClasses`"
