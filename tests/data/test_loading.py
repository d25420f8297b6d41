from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, SequentialSampler

from dhr_lightning.data.loading import CanvasBatches, EpochSampler, LazyWorkerDataLoader


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
    batches = iter(LazyWorkerDataLoader(dataset, batch_size=2, num_workers=workers))
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
