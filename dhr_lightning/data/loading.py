"""Order and start of batches, such that a resumed run repeats exactly and no image changes the result of another."""

from collections.abc import Hashable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch alone and hands on `(epoch, index)`, so that a resumed run repeats exactly.

    Derives from `DistributedSampler` so that Lightning keeps it and sets its epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield `(epoch, index)` of this rank."""
        return ((self.epoch, index) for index in super().__iter__())


class LazyWorkerDataLoader(DataLoader[Any]):
    """Starts its workers at the first batch, not when its iterator is made.

    Lightning makes the first iterator of a fit before it sets the epoch and before callbacks prepare the first masks:
    workers that read ahead would take the order of epoch 0 in a resumed run, and masks that are not written yet.
    """

    def __iter__(self) -> Any:  # noqa: ANN401 - torch hides the type of its iterators
        """Yield the batches of one epoch."""
        yield from super().__iter__()


class SizedSampler(Sized, Iterable[Any], Protocol):
    """What `CanvasBatches` asks of a sampler: keys of the dataset, and how many."""


class CanvasBatches(BatchSampler):
    """Batches of whole images that share one canvas, so that no image is padded to the size of another.

    Padding reaches deep into a network (zeros in every convolution, image pooling, attention over all tokens): in a
    batch of mixed sizes the result of an image would depend on its neighbours. A batch leaves as soon as its canvas is
    full; what is left over at the end follows in the order in which the canvases were first seen.

    Args:
        sampler: yields `index` or `(epoch, index)`; its order is kept within a canvas.
        batch_size: images in a full batch, >= 1.
        drop_last: must be False: an image that is left out would have no result. Lightning hands it on.
        canvases: canvas of every image of the dataset, by index.

    Raises:
        ValueError: if `batch_size` is below 1 or `drop_last` is set.
    """

    def __init__(
        self, sampler: SizedSampler, batch_size: int, drop_last: bool = False, *, canvases: Sequence[Hashable]
    ) -> None:
        if drop_last:
            raise ValueError("Expected `drop_last` to be False: whole images are all predicted.")
        super().__init__(sampler, batch_size, drop_last)
        self.canvases = canvases

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield lists of keys."""
        waiting: dict[Hashable, list[Any]] = {}
        for key in self.sampler:
            batch = waiting.setdefault(self._canvas(key), [])
            batch.append(key)
            if len(batch) == self.batch_size:
                yield batch
                waiting[self._canvas(key)] = []
        yield from (batch for batch in waiting.values() if batch)

    def __len__(self) -> int:
        """Number of batches that the sampler's images make."""
        counts: dict[Hashable, int] = {}
        for key in self.sampler:
            counts[self._canvas(key)] = counts.get(self._canvas(key), 0) + 1
        return sum(-(-count // self.batch_size) for count in counts.values())

    def _canvas(self, key: Any) -> Hashable:  # noqa: ANN401 - what the sampler yields
        return self.canvases[key[1] if isinstance(key, tuple) else key]
