"""A method from another package runs in a recipe, and one that cannot be loaded is named."""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dhr_lightning import steps
from dhr_lightning.__main__ import main
from dhr_lightning.errors import ConfigError
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
RECIPE = """
schema: 1
extends: base
steps:
  cam: {use: toy}
  baseline: {reads: {init: null}}
per_method:
  toy: {lr: 0.5, trainer: {max_epochs: 1}}
"""

Install = Callable[[str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Register an object as the method of another package, as an entry point would."""

    def register(value: str) -> None:
        point = EntryPoint("toy", value, steps.ENTRY_POINTS)
        monkeypatch.setattr(steps, "entry_points", lambda group: [point] if group == steps.ENTRY_POINTS else [])
        steps.methods.cache_clear()

    yield register
    monkeypatch.undo()
    steps.methods.cache_clear()


@pytest.mark.slow
def test_a_method_from_outside_runs_from_plan_to_report(
    empty_workspace: Workspace, install: Install, lines: Lines, ran: list[str]
):
    install("tests.pipeline.toy:SPEC")
    Path("mine.yaml").write_text(RECIPE)
    words = ["mine.yaml", "--root", str(empty_workspace.data), "--overlay", "debug.yaml"]

    assert main(["run", *words, "--dry"]) == 0
    assert any(line.split() == ["cam", "toy", "absent", "images", "and", "tags", "-"] for line in lines.messages)
    assert main(["run", *words]) == 0, lines.text
    assert ran == ["fit cam", "predict cam", "predict propagation", "fit baseline", "predict baseline"]
    lines.clear()
    assert main(["run", *words]) == 0
    assert lines.messages == ["run mine: up to date"]
    assert main(["status", *words]) == 0
    assert any("toy/" in line and "fresh  12 images" in line for line in lines.messages)
    report = json.loads(Path("reports/microworld/mine/report.json").read_text())
    assert set(report["metrics"]) == {"cam/train", "propagation/train", "baseline/train", "baseline/val"}
    assert "Toy" in Path("reports/microworld/mine/report.html").read_text()

    ran.clear()
    assert main(["run", *words, "--cam.sharpness", "2.0", "--until", "cam"]) == 0
    assert ran == ["predict cam"]


def test_an_argument_that_a_method_from_outside_lacks_is_refused_before_any_work(install: Install, lines: Lines):
    install("tests.pipeline.toy:SPEC")
    assert main(["run", "--swap", "cam=toy", "--cam.sharpnes", "2.0", "--dry"]) == 2
    assert "ToyTask has no argument 'sharpnes' (model.init_args). Did you mean sharpness?" in lines.text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("tests.pipeline.nowhere:SPEC", "cannot be loaded"),
        ("tests.pipeline.toy:ABSENT", "cannot be loaded"),
        ("tests.pipeline.toy:NO_SPEC", "is no StepSpec, but str"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_named(install: Install, lines: Lines, value: str, reason: str):
    install(value)
    assert main(["run", "--dry"]) == 2
    (message,) = lines.messages
    assert message.startswith(f"error: The method 'toy' of module {value} ")
    assert reason in message


def test_a_plugin_with_a_name_that_is_taken_is_refused(install: Install):
    install("dhr_lightning.methods.seeds.cam.spec:SPEC")
    with pytest.raises(ConfigError, match="Two methods are called 'cam'"):
        steps.methods()
