"""Process pool for the dense CRF; pydensecrf holds the interpreter lock, so threads would not help."""

from __future__ import annotations

import atexit
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from dhr_lightning.ops.crf.worker import CRFJob, CRFParameters, run_chunk, start_worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A task of so many scores takes several times as long as its two messages.
_TASK = 200_000

_pool: ProcessPoolExecutor | None = None
_pool_size = 0


def run_jobs(jobs: list[CRFJob], parameters: CRFParameters, *, workers: int) -> list[NDArray[np.float32]]:
    """Run every job, in this process when `workers` <= 1 or there is one job, else in the reused pool.

    Raises:
        RuntimeError: if a worker process died; the next call starts a new pool.
    """
    if workers <= 1 or len(jobs) <= 1:
        return run_chunk(jobs, parameters)
    chunks = _cut([job.probability.size for job in jobs], workers)
    results: dict[int, NDArray[np.float32]] = {}
    try:
        pool = _get_pool(workers)
        futures = [pool.submit(run_chunk, [jobs[index] for index in chunk], parameters) for chunk in chunks]
        for chunk, future in zip(chunks, futures, strict=True):
            results.update(zip(chunk, future.result(), strict=True))
        return [results[index] for index in range(len(jobs))]
    except BrokenProcessPool as error:
        close_pool()
        raise RuntimeError(
            f"A dense CRF worker process died while {len(jobs)} images were refined with workers={workers}. "
            "It may have run out of memory, or the script lacks `if __name__ == '__main__':`. Try fewer workers."
        ) from error


def _cut(sizes: list[int], workers: int) -> list[list[int]]:
    """Indices of the jobs of each task: large jobs alone and first, so that no worker is left with them at the end."""
    most = max(1, len(sizes) // (4 * workers))  # small jobs share a task while each worker still gets four
    chunks: list[list[int]] = []
    filled = _TASK
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if filled + sizes[index] > _TASK or len(chunks[-1]) >= most:
            chunks.append([])
            filled = 0
        chunks[-1].append(index)
        filled += sizes[index]
    return chunks


def close_pool() -> None:
    """Stop the worker processes; called at exit."""
    global _pool, _pool_size
    if _pool is not None:
        _pool.shutdown(wait=False, cancel_futures=True)
    _pool, _pool_size = None, 0


def _get_pool(workers: int) -> ProcessPoolExecutor:
    """Return the pool of this size; starting processes takes longer than several images."""
    global _pool, _pool_size
    if _pool is None or _pool_size != workers:
        close_pool()
        # A forked child would inherit the state of CUDA and of torch's threads, which is not safe.
        context = multiprocessing.get_context("spawn")
        _pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
        _pool_size = workers
    return _pool


atexit.register(close_pool)
