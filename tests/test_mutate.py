"""The report of a mutation run, and the list of mutants that nobody can notice."""

import ast
import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

pytest.importorskip("mutmut")
ROOT = Path(__file__).resolve().parent.parent
ENTRIES = yaml.safe_load((ROOT / "tools" / "equivalent_mutants.yaml").read_text(encoding="utf-8"))
SOURCE = '''"""A module."""

CONSTANT = 3


class Thing:
    """Something."""

    # why
    @staticmethod
    def double(
        value: int,
    ) -> int:
        """Twice the value."""
        return value + value


def half(value: int) -> float:
    return value / 2
'''


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("mutate", "mutant_report")})


@pytest.fixture
def mutated(tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of all mutants of `SOURCE` in a working directory where mutmut has made them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mutmut.configuration._config", None)
    (tmp_path / "pyproject.toml").write_text('[tool.mutmut]\nsource_paths = ["dhr_lightning"]\n')
    path = Path("dhr_lightning/ops/thing.py")
    for folder in (path.parent, "mutants" / path.parent):
        folder.mkdir(parents=True)
    path.write_text(SOURCE)
    create: ModuleType = importlib.import_module("mutmut.__main__")
    create.create_mutants_for_file(path, "mutants" / path)
    data = tools.mutate.SourceFileMutationData(path=path)
    data.load()
    return list(data.exit_code_by_key)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['where']} {entry['becomes']}"[:90])
def test_accepted_mutants_change_code_that_exists(entry: dict[str, str]):
    path, _, function = entry["where"].partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    body, found = ast.parse(source).body, None
    for name in function.split("."):
        found = next(node for node in body if getattr(node, "name", None) == name)
        body = found.body
    lines = " ".join(line.strip() for line in source.splitlines()[found.lineno - 1 : found.end_lineno])
    assert entry["was"] in lines
    assert entry["was"] != entry["becomes"]
    assert len(entry["because"]) > 20


def test_a_mutant_knows_its_place_and_its_change(tools, mutated):
    mutants = [tools.mutant_report.Mutant(name, Path("dhr_lightning/ops/thing.py"), 0) for name in mutated]
    found = {(mutant.function, mutant.line, *mutant.change) for mutant in mutants}
    assert ("Thing.double", 15, "return value + value", "return value - value") in found
    assert ("half", 19, "return value / 2", "return value * 2") in found
    assert {mutant.package for mutant in mutants} == {"ops"}


def test_the_table_counts_what_tests_missed(tools, mutated, monkeypatch):
    report = tools.mutant_report
    path = Path("dhr_lightning/ops/thing.py")
    (minus,) = (n for n in mutated if report.Mutant(n, path, 0).change[1] == "return value - value")
    others = [name for name in mutated if name != minus]
    codes = {minus: 0, others[0]: 1, others[1]: -24}  # survived, killed, timed out; the rest is not tested
    mutants = [report.Mutant(name, path, codes.get(name)) for name in mutated]
    assert f"| ops | {len(mutated)} | 3 | 1 | 1 | 1 | 0 | 66.7 % |" in report.summary(mutants)
    accepted = {(f"{path}::Thing.double", "return value + value", "return value - value"): "no reason"}
    monkeypatch.setattr(report, "_accepted", lambda: accepted)
    assert f"| ops | {len(mutated)} | 3 | 1 | 1 | 0 | 1 | 100.0 % |" in report.summary(mutants)


def test_the_report_shows_survivors_only(tools, mutated, tmp_path):
    report = tools.mutant_report
    mutants = [report.Mutant(name, Path("dhr_lightning/ops/thing.py"), int("half" not in name)) for name in mutated]
    report.save_report(tmp_path / "mutants.md", mutants)
    text = (tmp_path / "mutants.md").read_text()
    assert (
        "dhr_lightning/ops/thing.py:19 `half` survived\n```diff\n-    return value / 2\n+    return value * 2" in text
    )
    assert "Thing.double" not in text


def test_a_larger_sample_holds_the_smaller_one_and_packages_take_turns(tools):
    names = [f"dhr_lightning.{package}.m.x_f__mutmut_{k}" for package in ("ops", "data") for k in range(20)]
    codes = dict.fromkeys(names)
    results = tools.mutate.Results(dict.fromkeys(names, SimpleNamespace(exit_code_by_key=codes)))
    only = ["ops", "data"]
    options = Namespace(seed=0, count=5, all=False, only=only)
    few = tools.mutate._choose(results, options)
    assert len(few) == 10
    assert [name.split(".")[1] for name in few[:4]] in (["ops", "data"] * 2, ["data", "ops"] * 2)
    assert few == tools.mutate._choose(results, options)
    assert set(few) < set(tools.mutate._choose(results, Namespace(seed=0, count=9, all=False, only=only)))
    assert set(few) != set(tools.mutate._choose(results, Namespace(seed=1, count=5, all=False, only=only)))
    assert len(tools.mutate._choose(results, Namespace(seed=0, count=5, all=True, only=only))) == 40
    codes[few[0]] = 1
    assert tools.mutate._choose(results, options) == few[1:], "what was tested is not tested again"


def test_a_place_is_a_package_a_folder_or_a_module(tools):
    name, places = (
        "dhr_lightning.methods.features.stego.task.x_f__mutmut_1",
        ["ops", "methods/features/stego", "methods"],
    )
    assert tools.mutate._place(name, places) == "methods/features/stego"
    assert tools.mutate._place(name, ["methods/features/stego/task"]) == "methods/features/stego/task"
    assert tools.mutate._place(name, ["methods/features/"]) == "methods/features/"
    assert tools.mutate._place(name, ["methods/feature", "features", "methods/features/steg"]) is None
