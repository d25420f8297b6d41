"""What banks and queues keep when several processes train: the same on each, from the images of all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dhr_lightning.methods.features.cause.task import CauseTask
from dhr_lightning.methods.features.leopart.task import LeopartTask
from dhr_lightning.methods.seeds.sfc.bank import ImageBank
from dhr_lightning.methods.seeds.sfc.task import SFCTask
from dhr_lightning.ranks import everywhere, join, part
from tests.task_samples import make_batch, make_task
from tests.test_ranks import environment, torchrun

SIZES = [(32, 32)] * 2


def rows(rank: int) -> torch.Tensor:
    return torch.arange(2 + rank).float()[:, None] + 10 * rank


def sfc_batch(rank: int) -> dict[str, torch.Tensor]:
    batch = make_batch([[1 + rank], [3]], SIZES)
    batch["pixels"] = torch.full_like(batch["pixels"], 50 + rank)
    return batch


def sfc() -> SFCTask:
    task = make_task("SFCTask")
    task.bank = ImageBank(task.classes.num_tags, 32)
    return task


def vectors(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(1, 3 + rank, 8, generator=generator), torch.tensor([[0, 1, 2, 2][: 3 + rank]])


def cause() -> CauseTask:
    return make_task("CauseTask", codes=4, contrast={"projection": 8, "capacity": 8})


def leopart() -> LeopartTask:
    return make_task("LeopartTask", clusters={"queue": 6, "outputs": 4, "hidden": 8, "prototypes": 3})


def child(folder: str) -> None:
    """What one process does."""
    torch.manual_seed(0)
    rank = join().rank
    found = {"rows": everywhere(rows(rank)).tolist(), "flags": everywhere(rows(rank)[:, 0] > 10).tolist()}
    one = sfc()
    one._with_bank(sfc_batch(rank))
    found["sfc"] = [one.bank.pixels.float().mean((1, 2, 3)).tolist(), one.bank.filled.tolist()]
    two, (targets, ids) = cause(), vectors(rank)
    two._keep(targets, ids, torch.ones(ids.numel(), dtype=torch.bool))
    found["cause"] = [two.bank.filled.tolist(), two.bank.vectors.float().sum().item()]
    three = leopart()
    three._enqueue(rows(rank).expand(-1, 4))
    found["leopart"] = [three.queue[:, 0].tolist(), int(three.queued)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    part()


@pytest.mark.slow
def test_banks_hold_the_images_of_all_processes(tmp_path: Path):
    script = f"from tests.test_ranks_banks import child; child({str(tmp_path)!r})"
    subprocess.run(
        [*torchrun(2), "--no-python", sys.executable, "-c", script], env=environment(), check=True, timeout=240
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["rows"] == [[0.0], [1.0], [10.0], [11.0], [12.0]]
    assert first["flags"] == [False, False, False, True, True]
    alone = cause()
    for rank in (0, 1):
        targets, ids = vectors(rank)
        alone._keep(targets, ids, torch.ones(ids.numel(), dtype=torch.bool))
    assert first["cause"] == [alone.bank.filled.tolist(), pytest.approx(alone.bank.vectors.float().sum().item())]
    means, filled = first["sfc"]
    assert [means[tag] for tag in (0, 1, 2)] == [50.0, 51.0, 51.0]  # the last image of a class stays
    assert [filled[tag] for tag in (0, 1, 2)] == [True] * 3
    assert first["leopart"] == [[0.0, 1.0, 10.0, 11.0, 12.0, 0.0], 5]


def test_one_process_keeps_its_own():
    assert torch.equal(everywhere(rows(1)), rows(1))
