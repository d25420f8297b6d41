"""What every ratio benchmark shares: options, one row of the table, and paired timing."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        repeats: paired runs behind each median.
        photos: folder of JPEG photos; default: pictures of the built-in dataset.
    """

    repeats: int = 7
    photos: Path | None = None


@dataclass(frozen=True)
class Ratio:
    """One row of the table.

    Args:
        name: what is compared with what.
        value: measured figure, a ratio unless `unit` says otherwise.
        goal: what it should reach; `None` if it is only reported.
        at_most: the goal is an upper bound.
        unit: `x`, `%`, `MiB` or empty.
        detail: sizes, milliseconds of both sides, differences of the results.
    """

    name: str
    value: float
    goal: float | None = None
    at_most: bool = False
    unit: str = "x"
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; `None` without a goal."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def paired_medians(first: Callable[[], object], second: Callable[[], object], *, repeats: int) -> tuple[float, float]:
    """Median seconds of two functions, run in turns so that both meet the same load; the first runs do not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, times in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def peak_growth(function: Callable[[], object]) -> float:
    """MiB by which the resident set of this process grew at most while a function ran (Linux)."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    function()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
