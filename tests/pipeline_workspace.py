"""The means to run stages in a working directory and to look at what they leave there."""

import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.pipeline.command import Stage, stage_main

REPOSITORY = Path(__file__).resolve().parents[1]
ROUNDS = ("dhr_mask/round_00", "dhr_mask/round_01")


def load_stage(name: str) -> Stage:
    """The `STAGE` of a file in `stages/`."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STAGE


STAGES = {name: load_stage(name) for name in ("stage1_cam", "stage2_uss", "stage3_dhr")}


class Lines(logging.Handler):
    """What the command line said, as one string per message."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    @property
    def text(self) -> str:
        return "\n".join(self.messages)

    def clear(self) -> None:
        self.messages.clear()


class Workspace:
    """A working directory with a dataset beside it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.folder / "artifacts", "microworld")

    def arguments(self, options: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[str]:
        """Arguments of a stage file."""
        return [*options, "--overlay", "debug.yaml", "--", "--data.root", str(self.data), *overrides]

    def stage(self, name: str, *overrides: str, options: Sequence[str] = ()) -> int:
        """Run a stage in this process; the working directory must be the workspace."""
        assert Path.cwd() == self.folder
        return stage_main(STAGES[name], self.arguments(options, overrides))

    def configs(self, config: str) -> list[str]:
        """Arguments of `fit` and `predict` for one step."""
        files = [argument for path in (config, "data/microworld.yaml", "debug.yaml") for argument in ("--config", path)]
        return [*files, "--data.root", str(self.data)]

    def kill_during(self, name: str, sabotage: str, *overrides: str) -> None:
        """Run a stage in another process that `sabotage`, a piece of Python, makes kill itself."""
        script = (
            "import os, signal, sys, torch\ntorch.set_num_threads(1)\n"
            f"def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n{sabotage}\n"
            "from tests.pipeline_workspace import STAGES\nfrom dhr_lightning.pipeline.command import stage_main\n"
            f"raise SystemExit(stage_main(STAGES[{name!r}], sys.argv[1:]))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, *self.arguments(overrides=overrides)],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == -9, result.stdout + result.stderr

    def weights(self, step: str) -> dict[str, torch.Tensor]:
        """Final weights of the newest run of a step."""
        newest = max((self.folder / "runs" / "microworld" / step).glob("version_*"), key=version_number)
        return torch.load(newest / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def hashes(self, kind: str, split: str = "train") -> dict[str, str]:
        """SHA-256 of every file that an artifact holds for an image."""
        folder = self.store.folder(kind, split)
        files = sorted(path for path in folder.iterdir() if re.match(r"(train|val)_\d+", path.name))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def version_number(path: Path) -> int:
    """k of `version_k`."""
    return int(path.name.removeprefix("version_"))


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt_at(count: int, *, kind: str | None = None) -> Callable[..., Any]:
    """`ArtifactWriter.write` that the user interrupts at the `count`-th call, of one kind if there is one."""
    calls, write = iter(range(1, count)), ArtifactWriter.write

    def interrupted(self: ArtifactWriter, *arguments: Any) -> Any:
        if kind in (None, self.identity.kind) and next(calls, None) is None:
            raise KeyboardInterrupt
        return write(self, *arguments)

    return interrupted
