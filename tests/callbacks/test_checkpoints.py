import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dhr_lightning.artifacts.runs import find_checkpoint, next_version
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO
from dhr_lightning.errors import ArtifactError


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it or clean up after it."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint of step 2 and the one before it."""
    for step in (1, 2):
        save(tmp_path, step)
    return tmp_path


def save(run: Path, step: int) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": step, "weight": torch.full((1000,), step)}, last(run))


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def step_of(path: Path | None) -> int:
    return torch.load(path, weights_only=True)["step"]


def test_the_checkpoint_before_the_last_is_kept(run: Path):
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(last(run)) == 2
    assert step_of(run / "checkpoints" / "previous.ckpt") == 1
    assert find_checkpoint(run) == last(run)


def test_the_previous_checkpoint_serves_when_the_last_is_gone(run: Path):
    last(run).unlink()
    assert step_of(find_checkpoint(run)) == 1
    (run / "checkpoints" / "previous.ckpt").unlink()
    assert find_checkpoint(run) is None


@pytest.mark.parametrize(
    ("function", "call", "kept"),
    [("torch.save", 1, 2), ("os.fsync", 1, 2), ("os.link", 1, 2), ("os.replace", 1, 2), ("os.replace", 2, 2)],
)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int, kept: int
):
    calls, original = iter(range(1, call)), {"torch.save": torch.save, "os.replace": os.replace}.get(function)

    def deadly(*arguments: Any) -> None:
        if next(calls, None) is not None:
            return original(*arguments)
        if function == "torch.save":
            arguments[1].write(b"half a checkpoint")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(function, deadly)
        with pytest.raises(Killed):
            save(run, 3)
    assert step_of(find_checkpoint(run)) == kept
    assert step_of(run / "checkpoints" / "previous.ckpt") in (1, 2)

    save(run, 4)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(find_checkpoint(run)) == 4
    assert step_of(run / "checkpoints" / "previous.ckpt") == kept


def test_a_file_system_without_hard_links_will_do(run: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    save(run, 3)
    assert step_of(last(run)) == 3
    assert step_of(run / "checkpoints" / "previous.ckpt") == 2


def test_versions_count_on_from_the_highest(tmp_path: Path):
    assert next_version(tmp_path) == "version_0"
    for name in ("version_2", "version_10", "version_x"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "version_11"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("[enforce fail] unexpected pos 64 vs 0")]
)
def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoints(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ArtifactError, match=r"No space left for the checkpoint in .*checkpoints: .* 0 B free"):
        save(run, 3)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(last(run)) == 2


def test_another_error_of_torch_stays_what_it_is(run: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(content: Any, file: Any) -> None:
        raise RuntimeError("cannot pickle")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="cannot pickle"):
        save(run, 3)
