"""The means to run stages in a working directory and to look at what they leave there."""

import hashlib
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.kinds import round_number
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.pipeline.command import Stage, split_request, stage_main
from dhr_lightning.pipeline.plan import PlannedStep, RecipePlan, make_plan

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = ("dhr", "--swap", "uss=patches", "--overlay", "debug.yaml")
ROUNDS = ("dhr/round_00/train", "dhr/round_01/train")


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
    """A working directory with a dataset beside it.

    Artifacts are named as in `report.json`: `<step>[/round_KK]/<split>`, such as `cam/train` or `dhr/round_00/train`.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.folder / "artifacts", "microworld")

    def arguments(self, options: Sequence[str] = (), overrides: Sequence[str] = ()) -> list[str]:
        """Arguments of `run` and of a stage file; swaps and overlays of `options` come on top."""
        return [*RECIPE, "--root", str(self.data), *options, "--", *overrides]

    def stage(self, name: str, *overrides: str, options: Sequence[str] = ()) -> int:
        """Run a stage in this process; the working directory must be the workspace."""
        assert Path.cwd() == self.folder
        return stage_main(STAGES[name], self.arguments(options, overrides))

    def run(self, *overrides: str, options: Sequence[str] = ()) -> int:
        """Run the whole recipe in this process."""
        assert Path.cwd() == self.folder
        return main(["run", *self.arguments(options, overrides)])

    def command(self, name: str, *options: str) -> int:
        """Another command about the same recipe."""
        return main([name, *self.arguments(options)])

    def plan(self, *overrides: str, options: Sequence[str] = ()) -> RecipePlan:
        """The steps of the recipe."""
        return make_plan(split_request(self.arguments(options, overrides)))

    def places(self, *overrides: str, options: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """`(address, split)` of every artifact of the recipe."""
        plan = self.plan(*overrides, options=options)
        return {_name(step, *place): place for step in plan.steps for place in step.outputs()}

    def place(self, name: str, *overrides: str) -> tuple[str, str]:
        """`(address, split)` of an artifact."""
        return self.places(*overrides)[name]

    def path(self, name: str, image_id: str) -> Path:
        """File of one image."""
        return self.store.path(*self.place(name), image_id)

    def artifact(self, name: str) -> Path:
        """Folder of an artifact."""
        return self.store.folder(*self.place(name))

    def manifest(self, name: str, *overrides: str) -> Manifest | None:
        """Its manifest if it is sealed."""
        return self.store.manifest(*self.place(name, *overrides))

    def status(self, name: str, *overrides: str) -> Status:
        """Its state, judged by the recipe."""
        place = self.place(name, *overrides)
        return self.plan(*overrides)[name.partition("/")[0]].status(*place)

    def hashes(self, name: str, *overrides: str) -> dict[str, str]:
        """SHA-256 of every file that an artifact holds for an image."""
        folder = self.store.folder(*self.place(name, *overrides))
        files = sorted(path for path in folder.iterdir() if re.match(r"(train|val)_\d+", path.name))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def run_folder(self, step: str, *overrides: str) -> Path:
        """Where the fits of a step lie, below the workspace."""
        identity = self.plan(*overrides)[step].identity
        assert identity is not None
        return identity.run_folder

    def weights(self, step: str, *overrides: str) -> dict[str, torch.Tensor]:
        """Final weights of the newest run of a step."""
        newest = max((self.folder / self.run_folder(step, *overrides)).glob("version_*"), key=version_number)
        return torch.load(newest / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def configs(self, step: str) -> list[str]:
        """Arguments of `fit` and `predict` for one step."""
        planned = self.plan()[step]
        files = [f"methods/{planned.step.use}.yaml", "data/microworld.yaml", "debug.yaml"]
        inputs = [
            word for port, address in planned.identity.inputs.items() for word in (f"--data.inputs.{port}", address)
        ]
        return [*(word for file in files for word in ("--config", file)), "--data.root", str(self.data), *inputs]

    def kill_during(self, name: str, sabotage: str, *overrides: str, by: str = "SIGKILL") -> str:
        """Run a stage in another process that `sabotage`, a piece of Python, makes kill itself; returns its errors."""
        script = (
            "import os, signal, sys, torch\ntorch.set_num_threads(1)\n"
            f"def die():\n    os.kill(os.getpid(), signal.{by})\n{sabotage}\n"
            "from tests.pipeline_workspace import STAGES\nfrom dhr_lightning.pipeline.command import stage_main\n"
            f"raise SystemExit(stage_main(STAGES[{name!r}], sys.argv[1:]))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, *self.arguments(overrides=overrides)],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        number = int(getattr(signal, by))
        assert result.returncode == (-9 if by == "SIGKILL" else 128 + number), result.stdout + result.stderr
        return result.stderr


def _name(step: PlannedStep, address: str, split: str) -> str:
    number = round_number(address)
    return f"{step.name}/{split}" if number is None else f"{step.name}/round_{number:02d}/{split}"


def version_number(path: Path) -> int:
    """k of `version_k`."""
    return int(path.name.removeprefix("version_"))


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt_at(count: int, *, address: str | None = None) -> Callable[..., Any]:
    """`ArtifactWriter.write` that the user interrupts at the `count`-th call, of one artifact if there is one."""
    calls, write = iter(range(1, count)), ArtifactWriter.write

    def interrupted(self: ArtifactWriter, *arguments: Any) -> Any:
        if address in (None, self.identity.address) and next(calls, None) is None:
            raise KeyboardInterrupt
        return write(self, *arguments)

    return interrupted
