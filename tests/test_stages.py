"""The stage files end to end: run, skip, repair, refuse."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.writer import ArtifactWriter
from tests.pipeline_workspace import REPOSITORY, ROUNDS, STAGES, Lines, Workspace, interrupt_at, same_tensors

pytest_plugins = ["tests.pipeline_fixtures"]


def test_all_stages_write_complete_artifacts(workspace: Workspace):
    written = {"cam", "base_mask", "uss", "wss_mask", "mars_mask", *ROUNDS}
    kinds = {(kind, "train") for kind in written} | {("prediction_base", "val"), ("prediction", "val")}

    assert set(workspace.store.kinds()) == kinds
    assert all(workspace.store.status(kind, split).fresh for kind, split in kinds)
    assert all(len(workspace.hashes(kind, split)) == (12 if split == "train" else 4) for kind, split in kinds)
    assert workspace.hashes(ROUNDS[0]) != workspace.hashes(ROUNDS[1])
    assert {path.name for path in workspace.folder.iterdir()} == {"artifacts", "reports", "runs"}


@pytest.mark.parametrize("name", STAGES)
def test_second_run_is_up_to_date(workspace: Workspace, no_lightning: None, lines: Lines, name: str):
    assert workspace.stage(name) == 0
    assert lines.messages == [f"{name}: up to date"]


def test_being_up_to_date_needs_no_torch(workspace: Workspace):
    script = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY / "stages" / "stage3_dhr.py"), *workspace.arguments()]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["stage3_dhr: up to date", "0 False"]


def test_a_lost_mask_is_named_and_only_that_one_is_made_again(workspace: Workspace, lines: Lines):
    path, before = workspace.store.path("base_mask", "train", "train_0003"), workspace.hashes("base_mask")
    others = [workspace.store.path("base_mask", "train", f"train_00{k:02d}") for k in range(1, 13) if k != 3]
    written = [other.stat().st_mtime_ns for other in others]
    path.unlink()

    assert workspace.stage("stage3_dhr", "--model.init_args.workers", "1") == 2
    assert "1 of 12 files are missing" in lines.messages[-1]
    assert "'train_0003'" in lines.messages[-1]
    assert "Run `make stage1` first." in lines.messages[-1]

    assert workspace.stage("stage1_cam") == 0
    assert "base_mask/train is partial (1 of 12 files are missing" in lines.text
    assert "cam: continuing, 11 images are already written" in lines.text
    assert workspace.hashes("base_mask") == before
    assert [other.stat().st_mtime_ns for other in others] == written
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]


def test_a_lost_mask_of_a_round_is_made_again(workspace: Workspace, lines: Lines):
    before, weights = workspace.hashes(ROUNDS[0]), workspace.weights("dhr")
    workspace.store.path(ROUNDS[0], "train", "train_0005").unlink()

    assert workspace.stage("stage3_dhr") == 0
    assert "dhr_mask/round_00/train is partial" in lines.text
    assert workspace.hashes(ROUNDS[0]) == before
    assert same_tensors(workspace.weights("dhr"), weights)
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]


@pytest.mark.parametrize(
    ("stage", "override", "stale", "reason"),
    [
        ("stage1_cam", ("--model.init_args.background", "0.35"), "base_mask/train", 'background "auto" -> 0.35'),
        ("stage1_cam", ("--cam.data.seed=7",), "cam/train", "data.seed absent -> 7"),
        ("stage2_uss", ("--model.init_args.dimension", "8"), "uss/train", "model.init_args.dimension 16 -> 8"),
        ("stage3_dhr", ("--dhr.trainer.max_epochs", "3"), "prediction/val", "trainer.max_epochs 2 -> 3"),
    ],
)
def test_a_changed_setting_is_shown_with_both_values(
    workspace: Workspace, no_lightning: None, lines: Lines, stage: str, override: Any, stale: str, reason: str
):
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage(stage, *override)
    (line,) = (line for line in lines.messages if line.startswith(f"{stage}: {stale} is stale"))
    assert reason in line


def test_an_override_of_one_step_leaves_the_others_alone(workspace: Workspace, no_lightning: None, lines: Lines):
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage("stage3_dhr", "--dhr.model.init_args.weight_cls", "0.5")
    assert "wss_mask" not in lines.text
    assert "mars_mask" not in lines.text


@pytest.mark.parametrize("override", ["--data.num_workers=1", "--data.predict_batch_size=2", "--trainer.devices=1"])
def test_settings_without_influence_keep_artifacts_fresh(
    workspace: Workspace, no_lightning: None, lines: Lines, override: str
):
    assert workspace.stage("stage1_cam", override) == 0
    assert lines.messages == ["stage1_cam: up to date"]


def test_force_makes_everything_again(workspace: Workspace, lines: Lines):
    before = workspace.hashes("base_mask")
    path = workspace.store.path("base_mask", "train", "train_0002")
    path.write_bytes(path.read_bytes()[:40])

    assert workspace.stage("stage1_cam") == 0
    assert lines.messages == ["stage1_cam: up to date"]
    assert workspace.stage("stage1_cam", options=["--force"]) == 0
    assert "cam: fitting, logs in runs/microworld/cam/version_1" in lines.messages
    assert workspace.hashes("base_mask") == before
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0  # the same weights and files as before
    assert lines.messages == ["stage3_dhr: up to date"]


def test_a_forced_run_that_was_stopped_is_not_up_to_date(workspace: Workspace, no_lightning: None, lines: Lines):
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage("stage1_cam", options=["--force"])
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage("stage1_cam")


@pytest.mark.parametrize(
    ("kind", "step", "target"), [("base_mask", "wss", "stage1"), ("cam", "wss", "stage1"), ("uss", "mars", "stage2")]
)
def test_a_missing_input_names_the_command_that_makes_it(
    workspace: Workspace, no_lightning: None, lines: Lines, kind: str, step: str, target: str
):
    shutil.rmtree(workspace.store.folder(kind, "train"))
    assert workspace.stage("stage3_dhr", f"--{step}.model.init_args.lr=0.5") == 2
    assert f"{step} needs {kind}/train, which is absent" in lines.messages[-1]
    assert lines.messages[-1].endswith(f"Run `make {target}` first.")


def test_stage_3_before_stage_1_names_make_stage1(empty_workspace: Workspace, lines: Lines):
    assert empty_workspace.stage("stage3_dhr") == 2
    assert "wss needs base_mask/train, which is absent" in lines.messages[-1]
    assert lines.messages[-1].endswith("Run `make stage1` first.")


@pytest.mark.parametrize("place", ["runs/microworld/cam", "artifacts/microworld/base_mask/train"])
def test_a_second_process_on_a_folder_is_refused_and_works_later(workspace: Workspace, lines: Lines, place: str):
    workspace.store.path("base_mask", "train", "train_0001").unlink()
    with FolderLock(workspace.folder / place / ".lock"):
        assert workspace.stage("stage1_cam") == 2
    assert f"{place} is being written by process {os.getpid()}" in lines.messages[-1]
    assert workspace.stage("stage1_cam") == 0


def test_prediction_continues_where_it_was_interrupted(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    before = workspace.hashes("uss")
    shutil.rmtree(workspace.store.folder("uss", "train"))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(6))
        assert workspace.stage("stage2_uss") == 130
    assert lines.messages[-1] == "interrupted; run the same command again to continue"
    assert workspace.store.status("uss", "train").state == "partial"

    assert workspace.stage("stage2_uss") == 0
    assert "uss: continuing, 5 images are already written" in lines.messages
    assert not any("fitting" in line for line in lines.messages)
    assert workspace.hashes("uss") == before


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("--model.init_args.backgruond=0.3", "backgruond"),
        ("--data.bach_size=3", "bach_size"),
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--dta.batch_size=3", "dta"),
        ("--camm.data.batch_size=3", "camm"),
        ("--model.init_args.crf.itterations=3", "itterations"),
        ("--trainer.devices=2", "A stage runs on one device, but trainer.devices is 2"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(
    workspace: Workspace, lines: Lines, capsys: pytest.CaptureFixture[str], override: str, name: str
):
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(workspace.stage("stage1_cam", override))
    assert name in lines.text + capsys.readouterr().err


def test_the_state_of_a_run_is_recorded(workspace: Workspace):
    state = json.loads((workspace.folder / "runs" / "microworld" / "dhr" / "state.json").read_text())
    assert state["fitted"] is True
    assert state["run"] == "runs/microworld/dhr/version_0"
    assert state["seconds"] > 0
