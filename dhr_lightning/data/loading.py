"""Order and start of batches, such that a resumed run repeats exactly and no image changes the result of another."""

import itertools
import logging
import shutil
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from dhr_lightning.errors import DataError, DHRError
from dhr_lightning.progress import human

WORKER_TIMEOUT = 600  # seconds; one batch takes a small part of it
_SHARED_MEMORY = Path("/dev/shm")
_PLENTY = 8_000_000_000  # bytes of shared memory that no setting here fills
_READ_AHEAD = 3  # batches of one worker: two that are ready and one in the making
_SHARE = 0.8  # of what is free
log = logging.getLogger("dhr_lightning")


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch alone and hands on `(epoch, index)`, so that a resumed run repeats exactly.

    Derives from `DistributedSampler` so that Lightning keeps it and sets its epoch.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield `(epoch, index)` of this rank."""
        return ((self.epoch, index) for index in super().__iter__())


class WorkerDataLoader(DataLoader[Any]):
    """Starts its workers at the first batch, asks before whether their batches fit, and never waits without end.

    Lightning makes the first iterator of a fit before it sets the epoch and before callbacks prepare the first masks:
    workers that read ahead would take the order of epoch 0 in a resumed run, and masks that are not written yet.

    Its state in a checkpoint is how many batches of which epoch it gave, so that a fit that stopped in the middle of an
    epoch goes on with the others. Only the order needs it: every sample depends on seed, epoch and index alone.
    """

    _given = 0
    _before: Mapping[str, int] = MappingProxyType({})  # where a fit before stopped
    _passed = 0  # batches that the next iterator passes over

    def state_dict(self) -> dict[str, int]:
        """Epoch of the running iterator and batches that it gave."""
        return {"epoch": self._epoch, "batches": self._given}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on after these batches, in that epoch alone."""
        self._before = dict(state_dict)

    @property
    def _epoch(self) -> int:
        samplers = (self.sampler, getattr(self.batch_sampler, "sampler", None))
        return next((int(one.epoch) for one in samplers if isinstance(one, EpochSampler)), 0)

    @property
    def _index_sampler(self) -> Any:  # noqa: ANN401 - batches of keys, which torch asks for here
        every: Any = super()._index_sampler
        return list(itertools.islice(every, self._passed, None)) if self._passed else every

    def __iter__(self) -> Any:  # noqa: ANN401 - torch hides the type of its iterators
        """Yield the batches of one epoch.

        Raises:
            DHRError: what a worker raised, as it raised it.
            DataError: if a worker died, or gave no batch in ten minutes.
        """
        if self.num_workers > 0:
            self.num_workers = self._fitting_workers()
            self.timeout = WORKER_TIMEOUT if self.num_workers > 0 else 0
        resumed = self._before.get("epoch") == self._epoch
        self._given = self._passed = self._before.get("batches", 0) if resumed else 0
        self._before = {}
        try:
            iterator, self._passed = super().__iter__(), 0
            for batch in iterator:
                self._given += 1
                yield batch
        except DHRError as error:  # of a worker: torch puts the worker's traceback into the message
            before, _, message = str(error).rpartition(f"{type(error).__name__}: ")
            if not before.startswith("Caught"):
                raise
            raise type(error)(message.strip()) from error
        except RuntimeError as error:
            if self.num_workers == 0 or not str(error).startswith("DataLoader"):
                raise
            raise DataError(
                f"A process that loads images ended or gave nothing for {WORKER_TIMEOUT} s ({error}). It may lack "
                f"memory: load with fewer (--data.num_workers {self.num_workers // 2}); finished work is kept."
            ) from error

    def _fitting_workers(self) -> int:
        free = shared_memory_free()
        if free is None or free > _PLENTY:
            return self.num_workers
        keys = next(iter(self.batch_sampler if self.batch_sampler is not None else self.sampler), None)
        if keys is None:
            return self.num_workers
        first = keys[0] if isinstance(keys, list) else keys
        images = len(keys) if isinstance(keys, list) else 1
        sample = self.dataset[first]
        collated = self.collate_fn([sample]) if isinstance(keys, list) else sample
        fitting = fitting_workers(self.num_workers, tensor_bytes(collated) * images, free=free)
        if fitting < self.num_workers:
            log.warning(
                "%s has %s free, too little for the batches of %d processes: images are loaded by %s. "
                "In docker, --shm-size 2g gives more.",
                *(_SHARED_MEMORY, human(free), self.num_workers, fitting or "this process alone"),
            )
        return fitting


def shared_memory_free() -> int | None:
    """Free bytes of the shared memory through which workers hand over their batches; `None` where there is no limit."""
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None


def fitting_workers(workers: int, batch_bytes: int, *, free: int) -> int:
    """Workers whose batches fit into shared memory: each holds those that it read ahead, and others need some too.

    Args:
        workers: wanted.
        batch_bytes: of one batch.
        free: bytes of shared memory.
    """
    return min(workers, int(_SHARE * free) // max(_READ_AHEAD * batch_bytes, 1))


def tensor_bytes(sample: Any) -> int:  # noqa: ANN401 - what a dataset yields
    """Bytes of all tensors in nested mappings, sequences and dataclasses."""
    if isinstance(sample, Tensor):
        return sample.nbytes
    if isinstance(sample, Mapping):
        return sum(tensor_bytes(value) for value in sample.values())
    if isinstance(sample, Sequence) and not isinstance(sample, str | bytes):
        return sum(tensor_bytes(value) for value in sample)
    return sum(tensor_bytes(value) for value in vars(sample).values()) if is_dataclass(sample) else 0


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
        full: images in a full batch of a canvas, where it is less than `batch_size`: large images need more memory.

    Raises:
        ValueError: if `batch_size` is below 1 or `drop_last` is set.
    """

    def __init__(
        self,
        sampler: SizedSampler,
        batch_size: int,
        drop_last: bool = False,
        *,
        canvases: Sequence[Hashable],
        full: Mapping[Any, int] | None = None,
    ) -> None:
        if drop_last:
            raise ValueError("Expected `drop_last` to be False: whole images are all predicted.")
        super().__init__(sampler, batch_size, drop_last)
        self.canvases = canvases
        self.full: dict[Hashable, int] = dict(full or {})

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield lists of keys."""
        waiting: dict[Hashable, list[Any]] = {}
        for key in self.sampler:
            canvas = self._canvas(key)
            batch = waiting.setdefault(canvas, [])
            batch.append(key)
            if len(batch) == self._full(canvas):
                yield batch
                waiting[canvas] = []
        yield from (batch for batch in waiting.values() if batch)

    def __len__(self) -> int:
        """Number of batches that the sampler's images make."""
        counts: dict[Hashable, int] = {}
        for key in self.sampler:
            counts[self._canvas(key)] = counts.get(self._canvas(key), 0) + 1
        return sum(-(-count // self._full(canvas)) for canvas, count in counts.items())

    def _full(self, canvas: Hashable) -> int:
        return min(self.batch_size, self.full.get(canvas, self.batch_size))

    def _canvas(self, key: Any) -> Hashable:  # noqa: ANN401 - what the sampler yields
        return self.canvases[key[1] if isinstance(key, tuple) else key]
