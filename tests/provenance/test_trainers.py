"""Settings of the trainer that only the end would refuse are refused before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.errors import ConfigError
from dhr_lightning.provenance.start_checks import check_trainers
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"accelerator": "gpu"}, "dhr: trainer.accelerator is gpu, but torch finds no such device"),
        ({"accelerator": "cuda"}, "is cuda"),
        ({"accelerator": "mps"}, "is mps"),
        ({"logger": False}, "dhr: trainer.logger false would leave the run without a folder"),
        ({"enable_checkpointing": False}, "enable_checkpointing false would leave nothing to predict with"),
        ({"fast_dev_run": True}, "fast_dev_run true trains on a batch and keeps nothing"),
        ({"max_epochs": 0}, "max_epochs 0 trains nothing"),
        ({"max_steps": 0}, "max_steps 0 trains nothing"),
        ({"limit_predict_batches": 0.5}, "limit_predict_batches 0.5 would leave images without a mask"),
        ({"limit_predict_batches": 1}, "limit_predict_batches 1 would"),  # one batch, unlike 1.0
    ],
)
def test_what_cannot_end_well_is_refused(no_device: None, trainer: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        check_trainers({"cam": {"trainer": {"accelerator": "cpu"}}, "dhr": {"trainer": trainer}})


def test_what_is_there_is_fine(no_device: None, monkeypatch: pytest.MonkeyPatch):
    check_trainers({"cam": {}, "uss": {"trainer": None}, "dhr": {"trainer": {"accelerator": "auto", "logger": True}}})
    fine = {"max_epochs": 1, "max_steps": -1, "limit_predict_batches": 1.0, "fast_dev_run": False}
    check_trainers({"cam": {"trainer": {**fine, "enable_checkpointing": True}}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_trainers({"dhr": {"trainer": {"accelerator": "gpu"}}, "cam": {"trainer": {"accelerator": "cuda"}}})
    with pytest.raises(ConfigError, match="is mps"):
        check_trainers({"dhr": {"trainer": {"accelerator": "mps"}}})


def test_a_recipe_stops_before_its_first_step(
    no_device: None, empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(empty_workspace.folder)
    for setting in ("--trainer.accelerator=gpu", "--trainer.logger=false"):
        assert empty_workspace.stage("stage1_cam", setting) == 2
        assert lines.messages[-1].startswith("error: cam: trainer.")
    assert not Path("artifacts").exists() or empty_workspace.store.addresses() == []
    assert not Path("runs").exists()
