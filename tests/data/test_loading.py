from collections import Counter

import pytest
import torch
from torch.utils.data import Dataset

from dhr_lightning.data.loading import EpochSampler, LateLoader


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
    batches = iter(LateLoader(dataset, batch_size=2, num_workers=workers))
    dataset.ready = True
    assert [batch.tolist() for batch in batches] == [[True, True]] * 3
