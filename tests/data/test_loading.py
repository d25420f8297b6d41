import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, SequentialSampler

from dhr_lightning.data import loading
from dhr_lightning.data.loading import (
    CanvasBatches,
    EpochSampler,
    WorkerDataLoader,
    fitting_workers,
    shared_memory_free,
    tensor_bytes,
)
from dhr_lightning.errors import DataError
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


class Recorder(Dataset[int]):
    """Remembers what was read; the flag says what the main process knew at that moment."""

    def __init__(self) -> None:
        self.ready = False

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> bool:
        return self.ready


def order(images: int, replicas: int, rank: int, epoch: int = 0) -> list[int]:
    sampler = EpochSampler(range(images), num_replicas=replicas, rank=rank, shuffle=True, seed=5, drop_last=False)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert len(keys) == len(sampler)
    assert {found for found, _ in keys} == {epoch}
    return [index for _, index in keys]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 7, 12])
def test_the_ranks_cover_every_image(replicas: int, images: int):
    ranks = [order(images, replicas, rank, epoch=2) for rank in range(replicas)]
    assert len({len(rank) for rank in ranks}) == 1
    seen = Counter(index for rank in ranks for index in rank)
    assert set(seen) == set(range(images))
    assert sum(seen.values()) < images + replicas


def test_the_order_depends_on_the_epoch_alone():
    torch.manual_seed(1)
    first = order(12, 1, 0, epoch=3)
    torch.manual_seed(2)
    assert order(12, 1, 0, epoch=3) == first
    assert order(12, 1, 0, epoch=4) != first


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_start_with_the_first_batch(workers: int):
    dataset = Recorder()
    batches = iter(WorkerDataLoader(dataset, batch_size=2, num_workers=workers))
    dataset.ready = True
    assert [batch.tolist() for batch in batches] == [[True, True]] * 3


@given(canvases=st.lists(st.sampled_from("abc"), max_size=20), size=st.integers(1, 6))
def test_batches_hold_one_canvas_and_every_image_once(canvases: list[str], size: int):
    batches = CanvasBatches(SequentialSampler(canvases), size, canvases=canvases)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(index for batch in found for index in batch) == list(range(len(canvases)))
    assert all(len({canvases[index] for index in batch}) == 1 for batch in found)
    assert all(1 <= len(batch) <= size for batch in found)
    for canvas in set(canvases):
        own = [batch for batch in found if canvases[batch[0]] == canvas]
        assert [index for batch in own for index in batch] == [i for i, one in enumerate(canvases) if one == canvas]
        assert [len(batch) for batch in own[:-1]] == [size] * (len(own) - 1)


def test_a_canvas_that_is_full_leaves_at_once():
    assert list(CanvasBatches(SequentialSampler("abbab"), 2, canvases="abbab")) == [[1, 2], [0, 3], [4]]


def test_epochs_reach_the_dataset_through_the_batches():
    sampler = EpochSampler(range(4), num_replicas=1, rank=0, shuffle=False, seed=0)
    sampler.set_epoch(3)
    assert list(CanvasBatches(sampler, 4, canvases="aaba")) == [[(3, 0), (3, 1), (3, 3)], [(3, 2)]]


def test_no_whole_image_may_be_dropped():
    with pytest.raises(ValueError, match="drop_last"):
        CanvasBatches(range(3), 2, True, canvases="aaa")
    with pytest.raises(ValueError, match="batch_size"):
        CanvasBatches(range(3), 0, canvases="aaa")


class Pictures(Dataset[dict[str, torch.Tensor]]):
    """Six samples of 4000 bytes; `fault` happens at the third, in a worker."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.owner = fault, os.getpid()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == 2 and os.getpid() != self.owner:
            if self.fault == "error":
                raise DataError("Image x.jpg cannot be read. Replace it.")
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "waits":
                time.sleep(60)
        return {"pixels": torch.full((1000,), float(index))}


def batches_of(loader: WorkerDataLoader) -> list[list[float]]:
    return [batch["pixels"][:, 0].tolist() for batch in loader]


@pytest.mark.parametrize(("free", "workers"), [(10**10, 2), (90_000, 2), (40_000, 1), (20_000, 0)])
def test_no_more_workers_than_shared_memory_holds_and_the_same_batches(
    free: int, workers: int, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    monkeypatch.setattr(loading, "shared_memory_free", lambda: free)
    loader = WorkerDataLoader(Pictures(), batch_size=2, num_workers=2)
    assert batches_of(loader) == [[0, 1], [2, 3], [4, 5]]
    assert loader.num_workers == workers
    warned = [line for line in lines.messages if "/dev/shm" in line]
    assert warned == [] if workers == 2 else "--shm-size" in warned[0]


def test_workers_need_room_for_what_they_read_ahead():
    assert fitting_workers(8, 1000, free=3 * 1000 * 8) == 6  # a fifth is left to others
    assert fitting_workers(8, 0, free=0) == 0
    assert tensor_bytes({"a": torch.zeros(2, 3), "b": [torch.zeros(4, dtype=torch.uint8), "id"]}) == 28
    assert shared_memory_free() is None or shared_memory_free() > 0


def test_no_shared_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(loading, "_SHARED_MEMORY", tmp_path / "none")
    assert shared_memory_free() is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("error", r"^Image x\.jpg cannot be read\. Replace it\.$"),
        ("killed", r"ended or gave nothing .*--data\.num_workers 1\)"),
        ("waits", r"gave nothing for 2 s .*--data\.num_workers 1\)"),
    ],
)
def test_what_happens_to_a_worker_is_one_sentence_and_never_a_wait(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "WORKER_TIMEOUT", 2)
    with pytest.raises(DataError, match=message):
        batches_of(WorkerDataLoader(Pictures(fault), batch_size=2, num_workers=2))
