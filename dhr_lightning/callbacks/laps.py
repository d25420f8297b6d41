"""How long the iterations of a fit take, for the forecast of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import lightning as L

_watch: ContextVar["Laps | None"] = ContextVar("laps", default=None)


class Laps(L.Callback):
    """Seconds of each training iteration, loading included; mask refreshes and validation are not in them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Take a time."""
        now = time.monotonic()
        self.seconds.append(now - self._last)
        self._last = now


@contextmanager
def timed() -> Iterator[Laps]:
    """Every fit of this process inside is timed."""
    laps = Laps()
    token = _watch.set(laps)
    try:
        yield laps
    finally:
        _watch.reset(token)


def current_laps() -> list[L.Callback]:
    """The clock of `timed`, or nothing outside of it."""
    laps = _watch.get()
    return [] if laps is None else [laps]
