"""A recipe in two processes, as `torchrun` starts them: the same masks, one manifest, and nothing lost by a death."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
from dhr_lightning.ranks import Ranks, decided, gathered, ranks

pytest_plugins = ["tests.pipeline_fixtures"]
ROOT = Path(__file__).resolve().parent.parent
# Norms are frozen, so that two halves of a batch move the weights as the whole does.
EQUAL = ["--cam.frozen_norm", "true", "--baseline.frozen_norm", "true"]


def words(data: Path, place: Path, *more: str) -> list[str]:
    return ["base", "--overlay", "debug.yaml", "--root", str(data), "--workspace", str(place), *more, "--", *EQUAL]


def launched(count: int, arguments: list[str]) -> list[str]:
    return [*torchrun(count), "-m", "dhr_lightning", "run", *arguments]


def torchrun(count: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--master-port",
        str(port),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(count: int, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(launched(count, arguments), env=environment(), stdout=file, stderr=subprocess.STDOUT)


def plan_of(arguments: list[str]) -> RecipePlan:
    return make_plan(split_request(arguments))


def weights(plan: RecipePlan, step: str) -> dict[str, torch.Tensor]:
    (path,) = plan[step].identity.run_folder.glob("version_*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def validated(plan: RecipePlan) -> dict[str, float]:
    """What the fit of the CAMs logged of the validation images, at its last epoch."""
    (path,) = plan["cam"].identity.run_folder.glob("version_*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: float(row[name]) for row in rows for name in row if name.startswith("val/") and row[name]}


def masks(plan: RecipePlan, step: str) -> dict[str, bytes]:
    found = {}
    for address, split in plan[step].outputs():
        for path in sorted(plan.view.store.folder(address, split).glob("*.png")):
            found[f"{split}/{path.stem}"] = read_mask(path).tobytes()
    return found


@pytest.mark.slow
def test_two_processes_do_what_one_does(debug_data: Path, tmp_path: Path):
    alone, together = (words(debug_data, tmp_path / name) for name in ("alone", "together"))
    halves = [*together, "--data.batch_size", "3"]
    run = start(2, halves, tmp_path / "two.log")
    assert (
        subprocess.run(
            [sys.executable, "-m", "dhr_lightning", "run", *alone], env=environment(), check=False
        ).returncode
        == 0
    )
    said = (tmp_path / "two.log").read_text() if run.wait(300) == 0 else pytest.fail((tmp_path / "two.log").read_text())
    assert said.count("2 processes on 1 machines") == 1  # the second one is quiet
    assert "effective batch 6 = 3 images x 1 accumulated x 2 devices" in said
    one, two = plan_of(alone), plan_of(halves)
    expected, found = weights(one, "cam"), weights(two, "cam")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    before, after = validated(one), validated(two)
    assert before.keys() == after.keys() >= {"val/loss_cls", "val/tag_map"}
    assert after == pytest.approx(before, abs=1e-4)  # each process has half of the images
    for step in ("cam", "propagation", "baseline"):
        assert all(two[step].status(*place).fresh for place in two[step].outputs()), step
    assert masks(one, "propagation") == masks(two, "propagation")
    assert len(masks(two, "baseline")) == 16
    assert (tmp_path / "together/reports/microworld/base/report.html").is_file()
    again = subprocess.run(launched(2, halves), env=environment(), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout.count("up to date")) == (0, 1)


@pytest.mark.slow
def test_statistics_and_refreshes_are_those_of_all_images(debug_data: Path, tmp_path: Path):
    """MARS and the first round of DHR, from the same CAMs and features, in one process and in two."""

    def of(name: str) -> list[str]:
        place = ["--root", str(debug_data), "--workspace", str(tmp_path / name)]
        return ["dhr", "--swap", "uss=patches", "--overlay", "debug.yaml", *place]

    assert main(["run", *of("alone"), "--until", "uss"]) == 0
    assert main(["run", *of("alone"), "--until", "propagation"]) == 0
    shutil.copytree(tmp_path / "alone", tmp_path / "together")
    other = start(2, [*of("together"), "--until", "dhr"], tmp_path / "two.log")
    assert main(["run", *of("alone"), "--until", "dhr"]) == 0
    assert other.wait(300) == 0, (tmp_path / "two.log").read_text()
    one, two = plan_of(of("alone")), plan_of(of("together"))
    assert masks(one, "mars") == masks(two, "mars")
    first = [{k: v for k, v in masks(plan, "dhr").items() if k.startswith("train")} for plan in (one, two)]
    assert len(first[0]) == len(first[1]) == 12
    for plan in (one, two):
        assert all(plan["dhr"].status(*place).fresh for place in plan["dhr"].outputs())
    rounds = [
        sorted(plan.view.store.folder(plan["dhr"].outputs()[0][0], "train").parent.parent.glob("round_00/train/*.png"))
        for plan in (one, two)
    ]
    assert [path.name for path in rounds[0]] == [path.name for path in rounds[1]]
    assert len(rounds[0]) == 12
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*rounds, strict=True))


@pytest.mark.slow
def test_a_killed_process_loses_nothing(debug_data: Path, tmp_path: Path):
    arguments = [*words(debug_data, tmp_path / "work"), "--data.batch_size", "3", "--cam.trainer.max_epochs", "60"]
    run = start(2, arguments, tmp_path / "first.log")
    deadline = time.monotonic() + 120
    while "cam epoch 2" not in (tmp_path / "first.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)  # the one that decides and writes manifests
    assert run.wait(120) != 0
    run = start(2, arguments, tmp_path / "second.log")
    assert run.wait(300) == 0, (tmp_path / "second.log").read_text()
    assert "continuing from" in (tmp_path / "second.log").read_text()
    plan = plan_of(arguments)
    assert all(plan["baseline"].status(*place).fresh for place in plan["baseline"].outputs())


def test_one_process_decides_alone_and_gathers_its_own(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks() == Ranks(0, 1, 1)
    assert decided(lambda: "plan") == "plan"
    assert gathered([1]) == [[1]]
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ranks() == Ranks(5, 8, 4)
    assert ranks().machines == 2
