"""Fixtures around a working directory in which `debug.yaml` has run; load with `pytest_plugins`."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.pipeline_workspace import STAGES, Lines, Workspace


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Messages of the package, instead of on the screen."""
    log, handler = logging.getLogger("dhr_lightning"), Lines()
    before, log.handlers = (log.handlers, log.level, log.propagate), [handler]
    log.setLevel(logging.INFO)
    yield handler
    log.handlers, log.level, log.propagate = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in a fixed order, here and in other processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def debug_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in dataset in the size of `debug.yaml`."""
    from dhr_lightning.data.microworld.generate import ensure

    root = tmp_path_factory.mktemp("data") / "microworld"
    ensure(root, seed=0, train=12, val=4)
    return root


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory, debug_data: Path) -> Path:
    """A working directory where the recipe has run, stage by stage. Read only: see `workspace`."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in STAGES:
            assert Workspace(folder, debug_data).stage(name) == 0
    return folder


@pytest.fixture
def workspace(finished_runs: Path, debug_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the finished working directory, entered, that the test may damage."""
    folder = Path(shutil.copytree(finished_runs, tmp_path / "workspace"))
    monkeypatch.chdir(folder)
    return Workspace(folder, debug_data)


@pytest.fixture
def empty_workspace(debug_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty working directory, entered."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Workspace(folder, debug_data)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is fitted and predicted, as `fit cam`, in order."""
    from dhr_lightning import cli

    calls, run = [], cli.run_lightning

    def spy(arguments: Sequence[str], **options: Any) -> Any:
        text = arguments[arguments.index("--config") + 1]  # a recipe hands a step over as text
        calls.append(f"{arguments[0]} {yaml.safe_load(text)['data']['step'] if chr(10) in text else text}")
        return run(arguments, **options)

    monkeypatch.setattr(cli, "run_lightning", spy)
    return calls


@pytest.fixture
def no_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is fitted or predicted."""

    def refuse(arguments: Sequence[str], **options: Any) -> None:
        raise AssertionError(f"ran {arguments[0]}")

    monkeypatch.setattr("dhr_lightning.cli.run_lightning", refuse)
