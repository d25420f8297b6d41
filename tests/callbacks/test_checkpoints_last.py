"""Where the last checkpoint lies, what is in it, and what stays beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.artifacts.runs import find_checkpoint, next_version
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from tests.stand_ins import trainer_of


def saved_by(**settings: Any) -> list[tuple[Path, bool]]:
    """Path and `weights_only` of what an epoch of this trainer saves."""
    found: list[tuple[Path, bool]] = []
    trainer = trainer_of(
        save_checkpoint=lambda path, weights_only: found.append((path, weights_only)),
        **{"fast_dev_run": False, "log_dir": None, "default_root_dir": "root", **settings},
    )
    LastCheckpoint().on_train_epoch_end(trainer, None)
    return found


def test_the_checkpoint_is_whole_and_lies_in_the_folder_of_the_run():
    assert saved_by(log_dir="runs/version_3") == [(Path("runs/version_3/checkpoints/last.ckpt"), False)]
    assert saved_by() == [(Path("root/checkpoints/last.ckpt"), False)]


def test_a_trial_run_leaves_no_checkpoint():
    assert saved_by(fast_dev_run=True) == []


def test_folders_are_made_and_leftovers_of_a_kill_are_removed(tmp_path: Path):
    path = tmp_path / "runs" / "cam" / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, str(path))
    (path.parent / ".tmp-1-last.ckpt").write_bytes(b"half")
    (path.parent / "notes.txt").write_text("kept")
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["last.ckpt", "notes.txt", "previous.ckpt"]
    assert torch.load(path, weights_only=True) == {"step": 2}
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True) == {"step": 1}


def test_a_leftover_that_another_process_has_just_removed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda folder, pattern: iter([folder / ".tmp-gone"]))
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At `fsync` the file is complete, in the same folder, and the old checkpoint is still there."""
    path, seen = tmp_path / "last.ckpt", []
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def fsync(descriptor: int) -> None:
        (hidden,) = tmp_path.glob(".tmp-*")
        seen.append((torch.load(hidden, weights_only=True), torch.load(path, weights_only=True)))
        assert Path(f"/proc/self/fd/{descriptor}").resolve() == hidden.resolve()

    monkeypatch.setattr("os.fsync", fsync)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert seen == [({"step": 2}, {"step": 1})]


def test_a_folder_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "checkpoints" / "last.ckpt").mkdir(parents=True)
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "previous.ckpt").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "previous.ckpt"


def test_the_first_version_is_zero_and_gaps_are_not_filled(tmp_path: Path):
    assert next_version(tmp_path / "nowhere") == "version_0"
    for name in ("version_0", "other_7", "version_"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "version_1"
    (tmp_path / "version_5").mkdir()
    assert next_version(tmp_path) == "version_6"
