"""What became of the mutants: a table of the packages, and every survivor with file, line and change."""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from functools import cached_property
from pathlib import Path
from typing import Any

import libcst as cst
import yaml
from mutmut.mutation.diff_apply import read_functions_from_index
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
HEAD = ("package", "mutants", "tested", "killed", "timed out", "survived", "equivalent", "kill rate")
SURVIVED = ("survived", "no tests")


@dataclass(frozen=True)
class Mutant:
    """One fault in one function, by mutmut's name, and the exit status of its tests; none if it was not tested."""

    name: str
    path: Path
    exit_code: int | None

    @property
    def package(self) -> str:
        """Folder below `dhr_lightning`."""
        return self.path.parts[1]

    @property
    def status(self) -> str:
        """What mutmut calls the exit status; a crash of the process counts as killed."""
        status = str(status_by_exit_code[self.exit_code])
        return "killed" if status in ("suspicious", "segfault") else status

    @property
    def function(self) -> str:
        """`name` of a function, `Class.name` of a method."""
        name, owner = orig_function_and_class_names_from_key(self.name)
        return f"{owner}.{name}" if owner else name

    @cached_property
    def diff(self) -> list[str]:
        """Changed lines of the function without context; the first two tell the place."""
        functions = read_functions_from_index(self.name, self.path)
        if functions is None:
            raise RuntimeError(f"mutants/{self.path} is not the output of this mutmut. Run with --fresh.")
        before, after = (cst.Module([function]).code.strip().split("\n") for function in functions)
        return list(unified_diff(before, after, n=0, lineterm=""))[2:]

    @property
    def change(self) -> tuple[str, str]:
        """What a line of the function was and what it became, without indentation."""
        was, becomes = (" ".join(line[1:].strip() for line in self.diff if line[0] == sign) for sign in "-+")
        return was, becomes

    @property
    def line(self) -> int:
        """Where the first changed line is in the source."""
        functions = read_functions_from_index(self.name, self.path)
        code = cst.Module([functions[0]]).code.strip().split("\n") if functions else []
        above = next(index for index, line in enumerate(code) if line.lstrip().startswith("def "))
        changed = int(self.diff[0].split()[1].lstrip("-").split(",")[0])
        return _line_of(self.path, self.function) + changed - 1 - above


def summary(mutants: Sequence[Mutant]) -> str:
    """Markdown table: one row for each package, and one for all."""
    accepted = _accepted()
    rows = [_row(name, [mutant for mutant in mutants if mutant.package == name], accepted) for name in _names(mutants)]
    rows.append(_row("all", mutants, accepted))
    return "\n".join(f"| {' | '.join(row)} |" for row in [HEAD, ["---"] * len(HEAD), *rows])


def save_report(path: Path, mutants: Sequence[Mutant]) -> None:
    """Write the table and the diffs of survivors, those that are accepted as equivalent last."""
    accepted = _accepted()
    survivors = sorted(
        (mutant for mutant in mutants if mutant.status in SURVIVED), key=lambda mutant: (mutant.path, mutant.line)
    )
    lines = ["# Mutants", "", summary(mutants), "", "## Survivors", ""]
    lines += [line for mutant in survivors if not _reason(mutant, accepted) for line in _described(mutant)]
    lines += ["", "## Accepted as equivalent", ""]
    for mutant in survivors:
        if reason := _reason(mutant, accepted):
            lines += [*_described(mutant), f"Because: {reason}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _described(mutant: Mutant) -> list[str]:
    head = f"{mutant.path}:{mutant.line} `{mutant.function}` {mutant.status}"
    return [head, "```diff", *(line for line in mutant.diff if line[:2] != "@@"), "```", ""]


def _row(name: str, mutants: Sequence[Mutant], accepted: dict[Any, str]) -> list[str]:
    statuses = [mutant.status for mutant in mutants]
    tested = [mutant for mutant in mutants if mutant.exit_code is not None]
    survived = [mutant for mutant in tested if mutant.status in SURVIVED]
    equivalent = sum(_reason(mutant, accepted) is not None for mutant in survived)
    missed, judged = len(survived) - equivalent, len(tested) - equivalent
    numbers = (len(mutants), len(tested), statuses.count("killed"), statuses.count("timeout"), missed, equivalent)
    return [name, *map(str, numbers), f"{100 * (1 - missed / judged):.1f} %" if judged else ""]


def _names(mutants: Iterable[Mutant]) -> list[str]:
    return list(dict.fromkeys(mutant.package for mutant in mutants))


def _accepted() -> dict[tuple[str, str, str], str]:
    """Reasons of the survivors that no test can see, by place, old and new line."""
    entries = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or []
    return {(entry["where"], entry["was"], entry["becomes"]): entry["because"] for entry in entries}


def _reason(mutant: Mutant, accepted: dict[tuple[str, str, str], str]) -> str | None:
    return accepted.get((f"{mutant.path}::{mutant.function}", *mutant.change))


def _line_of(path: Path, function: str) -> int:
    """Line of the `def` of a function or method."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for name in function.split("."):
        (found,) = [node for node in body if getattr(node, "name", None) == name][-1:]
        body = getattr(found, "body", [])
    return found.lineno
