"""A fit of two processes that stops in the middle of an epoch goes on with the images that each has left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.__main__ import main
from dhr_lightning.callbacks import checkpoints
from dhr_lightning.methods.seeds.cam.task import CAMTask
from tests.test_ranks import environment, torchrun, words

pytest_plugins = ["tests.pipeline_fixtures"]
SAVING = "[{class_path: dhr_lightning.callbacks.checkpoints.LastCheckpoint, init_args: {minutes: 0}}]"


def child(seen: str, *arguments: str) -> None:
    """One process: notes the images of each step, saves after each, and stops where it is told."""
    checkpoints._ASKED = 1
    begin, rank = CAMTask.on_train_batch_start, os.environ["RANK"]
    stop = os.environ.get("STOP")

    def watched(task: CAMTask, batch: Any, index: int) -> None:
        if stop == f"{task.current_epoch}/{index}":
            raise KeyboardInterrupt
        with Path(f"{seen}.{rank}").open("a") as file:
            file.write(f"{task.current_epoch}/{index} {' '.join(batch['id'])}\n")
        begin(task, batch, index)

    CAMTask.on_train_batch_start = watched
    raise SystemExit(main(["run", *arguments]))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("runs/microworld/cam/*/version_*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_each_process_goes_on_with_its_own_images(debug_data: Path, tmp_path: Path):
    def run(name: str, stop: str | None) -> int:
        place = words(debug_data, tmp_path / name, "--until", "cam")
        settings = [*place, "--data.batch_size=1", "--cam.trainer.max_epochs=2", f"--cam.trainer.callbacks={SAVING}"]
        given = [str(tmp_path / f"seen_{name}"), *settings]
        script = f"from tests.test_ranks_epochs import child; child(*{given!r})"
        command = [*torchrun(2), "--no-python", sys.executable, "-c", script]
        more = {"STOP": stop} if stop else {}
        run = subprocess.run(command, env={**environment(), **more}, capture_output=True, timeout=300, check=False)
        return run.returncode

    assert run("whole", None) == 0
    assert run("parts", "1/3") != 0
    assert run("parts", None) == 0
    for rank in (0, 1):
        whole, parts = ((tmp_path / f"seen_{name}.{rank}").read_text() for name in ("whole", "parts"))
        assert whole == parts
        assert len(whole.splitlines()) == 12
    images = [set((tmp_path / f"seen_whole.{rank}").read_text().split()) for rank in (0, 1)]
    assert len([one for one in images[0] | images[1] if "/" not in one]) == 12
    expected, found = (weights_of(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
