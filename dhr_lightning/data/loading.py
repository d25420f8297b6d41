"""Order and start of training batches, such that a resumed run repeats exactly."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch alone and hands on `(epoch, index)`, so that a resumed run repeats exactly.

    Derives from `DistributedSampler` so that Lightning keeps it and sets its epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield `(epoch, index)` of this rank."""
        return ((self.epoch, index) for index in super().__iter__())


class LateLoader(DataLoader[Any]):
    """Starts its workers at the first batch, not when its iterator is made.

    Lightning makes the first iterator of a fit before it sets the epoch and before callbacks prepare the first masks:
    workers that read ahead would take the order of epoch 0 in a resumed run, and masks that are not written yet.
    """

    def __iter__(self) -> Any:  # noqa: ANN401 - torch hides the type of its iterators
        """Yield the batches of one epoch."""
        yield from super().__iter__()
