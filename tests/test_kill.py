"""A run that was killed with SIGKILL continues, and ends with the very files and weights of an undisturbed one."""

import csv
import shutil

import pytest

from tests.pipeline_workspace import ROUNDS, Lines, Workspace, interrupt_at, same_tensors

pytest_plugins = ["tests.pipeline_fixtures"]

EPOCHS = "--dhr.trainer.max_epochs=3"
ALL_ROUNDS = (*ROUNDS, "dhr_mask/round_02")

DIE_IN_THE_SECOND_EPOCH = """
from dhr_lightning.methods.seeds.cam.task import CAMTask
step = CAMTask.training_step
CAMTask.training_step = lambda task, batch, index: (
    die() if (task.current_epoch, index) == (1, 1) else step(task, batch, index)
)
"""
DIE_IN_ROUND_ONE = """
from dhr_lightning.artifacts.writer import ArtifactWriter
write, written = ArtifactWriter.write, []
def deadly(writer, *arguments):
    written.append(writer.identity.kind)
    return die() if written.count("dhr_mask/round_01") == 5 else write(writer, *arguments)
ArtifactWriter.write = deadly
"""
DIE_BETWEEN_LAST_FILE_AND_MANIFEST = """
from dhr_lightning.artifacts.writer import ArtifactWriter
ArtifactWriter.seal = lambda writer, **info: die()
"""


def copy_of(workspace: Workspace, name: str) -> Workspace:
    return Workspace(shutil.copytree(workspace.folder, workspace.folder.parent / name), workspace.data)


@pytest.mark.slow
def test_training_continues_after_the_last_whole_epoch(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    undisturbed = copy_of(empty_workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage1_cam", "--trainer.max_epochs=3") == 0

    monkeypatch.chdir(empty_workspace.folder)
    empty_workspace.kill_during("stage1_cam", DIE_IN_THE_SECOND_EPOCH, "--trainer.max_epochs=3")
    assert empty_workspace.store.kinds() == []
    lines.clear()
    assert empty_workspace.stage("stage1_cam", "--trainer.max_epochs=3", "--data.num_workers=1") == 0

    assert "cam: continuing from runs/microworld/cam/version_0/checkpoints/last.ckpt" in lines.messages
    assert not any(line.startswith("cam epoch 1:") for line in lines.messages)
    with open("runs/microworld/cam/version_0/metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val/tag_map"]] == ["0", "1", "2"]
    assert same_tensors(empty_workspace.weights("cam"), undisturbed.weights("cam"))
    for kind in ("cam", "base_mask"):
        assert empty_workspace.hashes(kind) == undisturbed.hashes(kind)


@pytest.mark.slow
def test_a_refresh_continues_in_the_middle_of_a_round(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    undisturbed = copy_of(workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage3_dhr", EPOCHS) == 0

    monkeypatch.chdir(workspace.folder)
    workspace.kill_during("stage3_dhr", DIE_IN_ROUND_ONE, EPOCHS)
    assert workspace.store.status(ROUNDS[0], "train").fresh
    assert workspace.store.status(ROUNDS[1], "train").state == "partial"
    assert len(workspace.hashes(ROUNDS[1])) == 4
    with monkeypatch.context() as patch:
        patch.setattr("dhr_lightning.artifacts.writer.ArtifactWriter.write", interrupt_at(12, kind=ALL_ROUNDS[2]))
        assert workspace.stage("stage3_dhr", EPOCHS) == 130
    assert len(workspace.hashes(ALL_ROUNDS[2])) == 11
    lines.clear()
    assert workspace.stage("stage3_dhr", EPOCHS) == 0

    assert "dhr: continuing from runs/microworld/dhr/version_1/checkpoints/last.ckpt" in lines.messages
    assert same_tensors(workspace.weights("dhr"), undisturbed.weights("dhr"))
    for kind in ALL_ROUNDS:
        assert workspace.hashes(kind) == undisturbed.hashes(kind)
    assert workspace.hashes("prediction", "val") == undisturbed.hashes("prediction", "val")


def test_an_artifact_whose_files_are_all_there_is_sealed(workspace: Workspace, lines: Lines):
    before = workspace.hashes("uss")
    workspace.store.path("uss", "train", "train_0001").unlink()
    workspace.kill_during("stage2_uss", DIE_BETWEEN_LAST_FILE_AND_MANIFEST)
    assert workspace.hashes("uss") == before
    assert workspace.store.manifest("uss", "train") is None

    assert workspace.stage("stage2_uss") == 0
    assert workspace.store.status("uss", "train").fresh
    lines.clear()
    assert workspace.stage("stage2_uss") == 0
    assert lines.messages == ["stage2_uss: up to date"]


def test_the_background_score_is_recorded_though_nothing_was_left_to_predict(workspace: Workspace):
    chosen = workspace.store.manifest("cam", "train").info
    for kind in ("cam", "base_mask"):
        workspace.store.path(kind, "train", "train_0001").unlink()
    workspace.kill_during("stage1_cam", DIE_BETWEEN_LAST_FILE_AND_MANIFEST)
    assert workspace.stage("stage1_cam") == 0
    for kind in ("cam", "base_mask"):
        found = workspace.store.manifest(kind, "train").info
        assert found["background"] == pytest.approx(chosen["background"])
        assert found["background_rule"] == "Otsu, 12 training images"
