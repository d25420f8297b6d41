"""Process pool for the dense CRF; pydensecrf holds the interpreter lock, so threads would not help."""

from __future__ import annotations

import atexit
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from math import ceil
from typing import TYPE_CHECKING

from dhr_lightning.ops._crf_worker import CRFJob, CRFParameters, run_chunk, start_worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_pool: ProcessPoolExecutor | None = None
_pool_size = 0


def run_jobs(jobs: list[CRFJob], parameters: CRFParameters, *, workers: int) -> list[NDArray[np.float32]]:
    """Run every job, in this process when `workers` <= 1 or there is one job, else in the reused pool.

    Raises:
        RuntimeError: if a worker process died; the next call starts a new pool.
    """
    if workers <= 1 or len(jobs) <= 1:
        return run_chunk(jobs, parameters)
    size = ceil(len(jobs) / (2 * workers))
    chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    try:
        pool = _get_pool(workers)
        futures = [pool.submit(run_chunk, chunk, parameters) for chunk in chunks]
        return [result for future in futures for result in future.result()]
    except BrokenProcessPool as error:
        close_pool()
        raise RuntimeError(
            f"A dense CRF worker process died while {len(jobs)} images were refined with workers={workers}. "
            "It may have run out of memory, or the script lacks `if __name__ == '__main__':`. Try fewer workers."
        ) from error


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
