"""A run that was killed with SIGKILL continues, and ends with the very files and weights of an undisturbed one."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline_workspace import ROUNDS, Lines, Workspace, interrupt_at, same_tensors

pytest_plugins = ["tests.pipeline_fixtures"]

EPOCHS = "--dhr.trainer.max_epochs=3"
ALL_ROUNDS = (*ROUNDS, "dhr/round_02/train")

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
    written.append("round_01" in writer.identity.address)
    return die() if sum(written) == 5 else write(writer, *arguments)
ArtifactWriter.write = deadly
"""
DIE_AT_THE_THIRD_FILE = """
from dhr_lightning.artifacts.writer import ArtifactWriter
write, written = ArtifactWriter.write, []
def deadly(writer, *arguments):
    written.append(arguments)
    return die() if len(written) == 3 else write(writer, *arguments)
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
    epochs = "--cam.trainer.max_epochs=3"
    undisturbed = copy_of(empty_workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage1_cam", epochs) == 0

    monkeypatch.chdir(empty_workspace.folder)
    empty_workspace.kill_during("stage1_cam", DIE_IN_THE_SECOND_EPOCH, epochs)
    assert empty_workspace.store.addresses() == []
    lines.clear()
    assert empty_workspace.stage("stage1_cam", epochs, "--data.num_workers=1") == 0

    run = empty_workspace.run_folder("cam", epochs) / "version_0"
    assert f"cam: continuing from {run}/checkpoints/last.ckpt" in lines.messages
    assert not any(line.startswith("cam epoch 1:") for line in lines.messages)
    with open(run / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val/tag_map"]] == ["0", "1", "2"]
    assert same_tensors(empty_workspace.weights("cam", epochs), undisturbed.weights("cam", epochs))
    for name in ("cam/train", "propagation/train"):
        assert empty_workspace.hashes(name, epochs) == undisturbed.hashes(name, epochs)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "workers"), [("SIGTERM", 0), ("SIGTERM", 1), ("SIGUSR1", 0)])
def test_a_fit_that_a_scheduler_ends_says_so_and_continues_to_equal_weights(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch, by: str, workers: int
):
    epochs = "--cam.trainer.max_epochs=3"
    undisturbed = copy_of(empty_workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage1_cam", epochs) == 0

    monkeypatch.chdir(empty_workspace.folder)
    number = f"--data.num_workers={workers}"
    errors = empty_workspace.kill_during("stage1_cam", DIE_IN_THE_SECOND_EPOCH, epochs, number, by=by)
    assert errors.strip().endswith(f"stopped by {by}; run the same command again to continue")
    assert "Traceback" not in errors
    assert empty_workspace.store.addresses() == []
    lines.clear()
    assert empty_workspace.stage("stage1_cam", epochs) == 0
    assert any("cam: continuing from" in line for line in lines.messages)
    assert same_tensors(empty_workspace.weights("cam", epochs), undisturbed.weights("cam", epochs))
    for name in ("cam/train", "propagation/train"):
        assert empty_workspace.hashes(name, epochs) == undisturbed.hashes(name, epochs)


@pytest.mark.slow
def test_a_prediction_that_a_scheduler_ends_keeps_what_is_whole(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    undisturbed = copy_of(empty_workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage1_cam") == 0

    monkeypatch.chdir(empty_workspace.folder)
    errors = empty_workspace.kill_during("stage1_cam", DIE_AT_THE_THIRD_FILE, by="SIGTERM")
    assert errors.strip().endswith("stopped by SIGTERM; run the same command again to continue")
    assert empty_workspace.status("cam/train").state == "partial"
    assert len(empty_workspace.hashes("cam/train")) == 2
    lines.clear()
    assert empty_workspace.stage("stage1_cam") == 0
    assert "cam: continuing, 2 images are already written" in lines.messages
    for name in ("cam/train", "propagation/train"):
        assert empty_workspace.hashes(name) == undisturbed.hashes(name)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_off, change_a_byte, Path.unlink])
def test_weights_that_are_damaged_after_the_fit_are_fitted_again_and_never_replaced_by_others(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
):
    epochs = "--cam.trainer.max_epochs=3"
    monkeypatch.chdir(empty_workspace.folder)
    assert empty_workspace.stage("stage1_cam", epochs) == 0
    weights, files = empty_workspace.weights("cam", epochs), empty_workspace.hashes("cam/train", epochs)

    damage(empty_workspace.run_folder("cam", epochs) / "version_0" / "checkpoints" / "last.ckpt")
    shutil.rmtree("artifacts")
    lines.clear()
    assert empty_workspace.stage("stage1_cam", epochs) == 0
    assert "are missing or not as they were; it goes on from the last epoch that is whole" in lines.text
    assert "cam: continuing from" in lines.text
    assert [line.partition(":")[0] for line in lines.messages if line.startswith("cam epoch")] == ["cam epoch 3"]
    assert same_tensors(empty_workspace.weights("cam", epochs), weights)
    assert empty_workspace.hashes("cam/train", epochs) == files


@pytest.mark.slow
def test_a_step_that_starts_from_weights_that_are_gone_has_them_fitted_again(
    workspace: Workspace, lines: Lines, ran: list[str]
):
    """The artifacts of the CAM step are all there; only DHR, which starts from its network, runs again."""
    weights = workspace.weights("cam")
    (workspace.run_folder("cam") / "version_0" / "checkpoints" / "last.ckpt").unlink()
    assert workspace.stage("stage3_dhr", EPOCHS) == 0
    assert ran[0] == "fit cam"
    assert "predict cam" not in ran
    assert "fit dhr" in ran
    assert same_tensors(workspace.weights("cam"), weights)


@pytest.mark.slow
def test_a_fit_continues_from_the_checkpoint_before_where_the_last_one_is_cut_off(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    epochs = "--cam.trainer.max_epochs=4"
    undisturbed = copy_of(empty_workspace, "undisturbed")
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage1_cam", epochs) == 0

    monkeypatch.chdir(empty_workspace.folder)
    later = DIE_IN_THE_SECOND_EPOCH.replace("(1, 1)", "(2, 1)")
    empty_workspace.kill_during("stage1_cam", later, epochs)
    folder = empty_workspace.run_folder("cam", epochs) / "version_0" / "checkpoints"
    cut_off(folder / "last.ckpt")
    lines.clear()
    assert empty_workspace.stage("stage1_cam", epochs) == 0
    assert f"{folder / 'last.ckpt'} is damaged" in lines.text
    assert f"cam: continuing from {folder / 'previous.ckpt'}" in lines.messages
    assert (folder / "last.ckpt.damaged").is_file()
    assert same_tensors(empty_workspace.weights("cam", epochs), undisturbed.weights("cam", epochs))


@pytest.mark.slow
def test_a_refresh_continues_in_the_middle_of_a_round(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    undisturbed, others = copy_of(workspace, "undisturbed"), workspace.places()
    before = {name: workspace.hashes(name) for name in others}
    monkeypatch.chdir(undisturbed.folder)
    assert undisturbed.stage("stage3_dhr", EPOCHS) == 0

    monkeypatch.chdir(workspace.folder)
    workspace.kill_during("stage3_dhr", DIE_IN_ROUND_ONE, EPOCHS)
    assert workspace.status(ROUNDS[0], EPOCHS).fresh
    assert workspace.status(ROUNDS[1], EPOCHS).state == "partial"
    assert len(workspace.hashes(ROUNDS[1], EPOCHS)) == 4
    with monkeypatch.context() as patch:
        address, _ = workspace.place(ALL_ROUNDS[2], EPOCHS)
        patch.setattr("dhr_lightning.artifacts.writer.ArtifactWriter.write", interrupt_at(12, address=address))
        assert workspace.stage("stage3_dhr", EPOCHS) == 130
    assert len(workspace.hashes(ALL_ROUNDS[2], EPOCHS)) == 11
    lines.clear()
    assert workspace.stage("stage3_dhr", EPOCHS) == 0

    run = workspace.run_folder("dhr", EPOCHS) / "version_0"
    assert f"dhr: continuing from {run}/checkpoints/last.ckpt" in lines.messages
    assert same_tensors(workspace.weights("dhr", EPOCHS), undisturbed.weights("dhr", EPOCHS))
    for name in (*ALL_ROUNDS, "dhr/val"):
        assert workspace.hashes(name, EPOCHS) == undisturbed.hashes(name, EPOCHS)
    assert {name: workspace.hashes(name) for name in others} == before  # the variant with two epochs lies as it lay
    assert all(workspace.status(name).fresh for name in others)


def test_an_artifact_whose_files_are_all_there_is_sealed(workspace: Workspace, lines: Lines):
    before = workspace.hashes("uss/train")
    workspace.path("uss/train", "train_0001").unlink()
    workspace.kill_during("stage2_uss", DIE_BETWEEN_LAST_FILE_AND_MANIFEST)
    assert workspace.hashes("uss/train") == before
    assert workspace.manifest("uss/train") is None

    assert workspace.stage("stage2_uss") == 0
    assert workspace.status("uss/train").fresh
    lines.clear()
    assert workspace.stage("stage2_uss") == 0
    assert lines.messages == ["stage2_uss: up to date"]


def test_the_background_score_is_recorded_though_nothing_was_left_to_predict(workspace: Workspace):
    chosen = workspace.manifest("propagation/train").info
    workspace.path("propagation/train", "train_0001").unlink()
    workspace.kill_during("stage1_cam", DIE_BETWEEN_LAST_FILE_AND_MANIFEST)
    assert workspace.stage("stage1_cam") == 0
    found = workspace.manifest("propagation/train").info
    assert found["background"] == pytest.approx(chosen["background"])
    assert found["background_rule"] == "Otsu, 12 training images"
