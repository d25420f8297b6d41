"""The stage files end to end: run, skip, repair, refuse."""

import os
import shlex
import shutil
import subprocess
import sys
from typing import Any

import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_json
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.writer import ArtifactWriter
from tests.pipeline_workspace import REPOSITORY, ROUNDS, STAGES, Lines, Workspace, interrupt_at, same_tensors

pytest_plugins = ["tests.pipeline_fixtures"]
MADE = {
    "cam/train", "propagation/train", "uss/train", "baseline/train", "baseline/val", "mars/train", *ROUNDS, "dhr/val"
}  # fmt: skip


def test_all_stages_write_complete_artifacts(workspace: Workspace):
    places = workspace.places()
    assert set(places) == MADE
    assert set(workspace.store.addresses()) == set(places.values())
    assert all(workspace.status(name).fresh for name in places)
    assert all(len(workspace.hashes(name)) == (12 if name.endswith("train") else 4) for name in places)
    assert workspace.hashes(ROUNDS[0]) != workspace.hashes(ROUNDS[1])
    assert {path.name for path in workspace.folder.iterdir()} == {"artifacts", "reports", "runs"}


@pytest.mark.parametrize("name", STAGES)
def test_second_run_is_up_to_date(workspace: Workspace, no_lightning: None, lines: Lines, name: str):
    assert workspace.stage(name) == 0
    assert lines.messages == [f"{name}: up to date"]


def test_the_command_run_finds_what_the_stages_made(workspace: Workspace, no_lightning: None, lines: Lines):
    assert workspace.run() == 0
    assert lines.messages == ["run dhr+uss=patches: up to date"]


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
    path, before = workspace.path("propagation/train", "train_0003"), workspace.hashes("propagation/train")
    others = [workspace.path("propagation/train", f"train_00{k:02d}") for k in range(1, 13) if k != 3]
    written = [other.stat().st_mtime_ns for other in others]
    path.unlink()

    assert workspace.stage("stage3_dhr", "--baseline.lr", "0.5") == 2
    assert "baseline needs masks, crf/" in lines.messages[-1]
    assert "1 of 12 files are missing" in lines.messages[-1]
    assert "'train_0003'" in lines.messages[-1]
    assert "--until propagation" in lines.messages[-1]

    assert workspace.stage("stage1_cam") == 0
    assert "mask/train is partial (1 of 12 files are missing" in lines.text
    assert "propagation: continuing, 11 images are already written" in lines.text
    assert workspace.hashes("propagation/train") == before
    assert [other.stat().st_mtime_ns for other in others] == written
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]


def test_a_lost_mask_of_a_round_is_made_again(workspace: Workspace, lines: Lines):
    before, weights = workspace.hashes(ROUNDS[0]), workspace.weights("dhr")
    workspace.path(ROUNDS[0], "train_0005").unlink()

    assert workspace.stage("stage3_dhr") == 0
    assert "mask/round_00/train is partial" in lines.text
    assert workspace.hashes(ROUNDS[0]) == before
    assert same_tensors(workspace.weights("dhr"), weights)
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]


@pytest.mark.parametrize(
    "override",
    ["--data.num_workers=1", "--data.predict_batch_size=2", "--trainer.devices=1", "--propagation.workers=1"],
)
def test_settings_without_influence_keep_artifacts_fresh(
    workspace: Workspace, no_lightning: None, lines: Lines, override: str
):
    assert workspace.stage("stage1_cam", override) == 0
    assert lines.messages == ["stage1_cam: up to date"]


def test_force_makes_everything_again(workspace: Workspace, lines: Lines):
    before = workspace.hashes("propagation/train")
    path = workspace.path("propagation/train", "train_0002")
    path.write_bytes(path.read_bytes()[:40])

    assert workspace.stage("stage1_cam") == 0
    assert lines.messages == ["stage1_cam: up to date"]
    assert workspace.stage("stage1_cam", options=["--force"]) == 0
    assert f"cam: fitting, logs in {workspace.run_folder('cam')}/version_1" in lines.messages
    assert workspace.hashes("propagation/train") == before
    lines.clear()
    assert workspace.stage("stage3_dhr") == 0  # the same weights and files as before
    assert lines.messages == ["stage3_dhr: up to date"]


def test_force_of_one_step_leaves_the_others(workspace: Workspace, ran: list[str]):
    assert workspace.stage("stage1_cam", options=["--force", "propagation"]) == 0
    assert ran == ["predict propagation"]


def test_a_forced_run_that_was_stopped_is_not_up_to_date(workspace: Workspace, no_lightning: None, lines: Lines):
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage("stage1_cam", options=["--force"])
    with pytest.raises(AssertionError, match="ran fit"):
        workspace.stage("stage1_cam")


@pytest.mark.parametrize(
    ("lost", "override", "port"),
    [("propagation/train", "--baseline.lr=0.5", "masks"), ("uss/train", "--mars.rejected=ignore", "features")],
)
def test_a_missing_input_names_the_command_that_makes_it(
    workspace: Workspace, no_lightning: None, lines: Lines, lost: str, override: str, port: str
):
    shutil.rmtree(workspace.artifact(lost))
    assert workspace.stage("stage3_dhr", override) == 2
    step, source = override[2:].partition(".")[0], lost.partition("/")[0]
    assert f"{step} needs {port}, {'/'.join(workspace.place(lost))}, which is absent" in lines.messages[-1]
    command = lines.messages[-1].split("`")[1]
    assert command.startswith("python -m dhr_lightning run dhr ")
    assert f"--until {source}" in command


def test_the_command_that_an_error_advises_repairs_it(workspace: Workspace, lines: Lines, ran: list[str]):
    shutil.rmtree(workspace.artifact("uss/train"))
    assert workspace.stage("stage3_dhr", "--mars.rejected=ignore") == 2
    advice = shlex.split(lines.messages[-1].split("`")[1])
    assert advice[:4] == ["python", "-m", "dhr_lightning", "run"]
    assert main(advice[3:]) == 0
    assert ran == ["predict uss"]
    assert workspace.status("uss/train").fresh


def test_stage_3_before_stage_1_names_what_it_needs(empty_workspace: Workspace, lines: Lines):
    assert empty_workspace.stage("stage3_dhr") == 2
    assert "baseline needs masks, crf/" in lines.messages[-1]
    assert "which is absent" in lines.messages[-1]
    assert "--until propagation" in lines.messages[-1]


def test_a_second_process_is_refused_and_works_later(workspace: Workspace, lines: Lines):
    for name, place in (("cam/train", workspace.run_folder("cam")), ("propagation/train", None)):
        workspace.path(name, "train_0001").unlink()
        folder = place or workspace.artifact(name).relative_to(workspace.folder)
        with FolderLock(workspace.folder / folder / ".lock"):
            assert workspace.stage("stage1_cam") == 2
        assert f"{folder} is being written by process {os.getpid()}" in lines.messages[-1]
        assert workspace.stage("stage1_cam") == 0


def test_prediction_continues_where_it_was_interrupted(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    before = workspace.hashes("uss/train")
    shutil.rmtree(workspace.artifact("uss/train"))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(6))
        assert workspace.stage("stage2_uss") == 130
    assert lines.messages[-1] == "interrupted; run the same command again to continue"
    assert workspace.status("uss/train").state == "partial"

    assert workspace.stage("stage2_uss") == 0
    assert "uss: continuing, 5 images are already written" in lines.messages
    assert not any("fitting" in line for line in lines.messages)
    assert workspace.hashes("uss/train") == before


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("--cam.backgruond=0.3", "backgruond"),
        ("--data.bach_size=3", "bach_size"),
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--dta.batch_size=3", "Did you mean data"),
        ("--camm.data.batch_size=3", "Did you mean cam"),
        ("--propagation.crf.itterations=3", "itterations"),
        ("--trainer.devices=2", "as many processes as it is started in, but trainer.devices is 2"),
    ],
)
def test_an_override_that_cannot_be_used_is_named(
    workspace: Workspace, lines: Lines, capsys: pytest.CaptureFixture[str], override: str, name: str
):
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(workspace.stage("stage1_cam", override))
    assert name in lines.text + capsys.readouterr().err


def test_the_state_of_a_run_is_recorded(workspace: Workspace):
    state: Any = read_json(workspace.folder / workspace.run_folder("dhr") / "state.json")
    assert state["fitted"] is True
    assert state["run"] == "version_0"
    assert state["seconds"] > 0
