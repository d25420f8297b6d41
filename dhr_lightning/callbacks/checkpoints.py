"""Checkpoints that a kill cannot break."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dhr_lightning.artifacts.runs import LAST, PREVIOUS
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.progress import human

_ASKED = 50  # batches between two questions to rank 0
_NEARLY_FULL = 1_000_000  # bytes: torch writes more than this at once


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then replaces; the checkpoint before it stays as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Save atomically on any file system, because the temporary file is in the same folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        _save(checkpoint, temporary)
        if path.exists():
            kept = path.with_name(f".tmp-{os.getpid()}-{PREVIOUS}")
            try:
                os.link(path, kept)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, kept)
            os.replace(kept, path.with_name(PREVIOUS))
            kept.unlink(missing_ok=True)  # still there if both were links to one file
        os.replace(temporary, path)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """Save, or leave nothing.

    Raises:
        ArtifactError: if the disk is full; torch says so as an error of its own.
    """
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        written, free = path.stat().st_size if path.exists() else 0, shutil.disk_usage(path.parent).free
        path.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) if isinstance(error, OSError) else free < _NEARLY_FULL
        if not full:
            raise
        raise ArtifactError(
            f"No space left for the checkpoint in {path.parent}: {human(written)} of it were written, {human(free)} "
            "free. Free some space and run the same command again; it continues from the checkpoint before."
        ) from error


class LastCheckpoint(Checkpoint):
    """Keeps the weights after the last finished epoch, and in long epochs now and then; after every other callback.

    Args:
        minutes: longest time between two checkpoints, >= 0. A task that collects something over an epoch, see
            `BaseTask.collects`, keeps its epochs whole.

    None is chosen by a metric: that would need pixel labels. Fitted tasks take no optimiser step, which is why
    Lightning's own `ModelCheckpoint` (it skips a step it has seen) does not serve here.
    """

    def __init__(self, minutes: float = 15) -> None:
        if minutes < 0:
            raise ConfigError(f"Expected LastCheckpoint.minutes >= 0, but got {minutes}.")
        self.seconds = 60 * minutes
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: BaseTask) -> None:
        """A mask refresh before the epoch does not count."""
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: BaseTask, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save if it is time; rank 0 decides for all."""
        number = batch_idx + 1
        whole = number % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if not whole or pl_module.collects or (trainer.world_size > 1 and number % _ASKED):
            return
        due = time.monotonic() - self._saved >= self.seconds
        if trainer.strategy.broadcast(due) if trainer.world_size > 1 else due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; every rank takes part."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved = time.monotonic()
        if trainer.fast_dev_run:
            return
        folder = trainer.log_dir or trainer.default_root_dir
        trainer.save_checkpoint(Path(folder) / "checkpoints" / LAST, weights_only=False)
