"""Training progress as plain lines, for logs without a terminal."""

import logging
import time

import lightning as L

from dhr_lightning.methods.base import planned_epochs
from dhr_lightning.progress import describe

log = logging.getLogger("dhr_lightning")
_SECONDS_BETWEEN_STEPS = 30.0


class PlainProgress(L.Callback):
    """One line after each epoch, and every half minute in long ones: metrics, time spent, time left."""

    def __init__(self) -> None:
        self._start, self._first, self._steps = 0.0, 0, 0
        self._done = self._total = 0
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start, self._first = time.monotonic(), trainer.current_epoch
        self._last, self._done, self._steps = self._start, 0, trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Print a line if none has come for a while."""
        self._done += 1
        now = time.monotonic()
        if now - self._last <= _SECONDS_BETWEEN_STEPS or not trainer.is_global_zero:
            return
        progress = describe(self._done, self._batches(trainer), now - self._start)
        log.info("%s epoch %d: %s", getattr(pl_module, "step", "fit"), trainer.current_epoch + 1, progress)
        self._last = now

    def _batches(self, trainer: L.Trainer) -> int | None:
        """Batches of this fit from its start to its end, which epochs or steps of the optimiser may be."""
        if trainer.num_training_batches == float("inf"):
            return None
        whole = int(trainer.num_training_batches) * (planned_epochs(trainer) - self._first)
        if trainer.max_steps < 0:
            return whole
        return min(whole, (trainer.max_steps - self._steps) * trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        if not trainer.is_global_zero:
            return
        metrics = ", ".join(
            f"{name} {float(value):.4f}" for name, value in trainer.progress_bar_metrics.items() if name != "v_num"
        )
        epochs, seconds = trainer.current_epoch + 1, time.monotonic() - self._start
        progress = describe(epochs - self._first, planned_epochs(trainer) - self._first, seconds)
        log.info("%s epoch %d: %s [%s]", getattr(pl_module, "step", "fit"), epochs, metrics, progress)
        self._last = time.monotonic()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._total = int(sum(trainer.num_predict_batches))
        self._done = 0

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Print a line every ten seconds."""
        self._done += 1
        now = time.monotonic()
        if now - self._last > 10 and trainer.is_global_zero:
            log.info(
                "%s predict: %s", getattr(pl_module, "step", ""), describe(self._done, self._total, now - self._start)
            )
            self._last = now
