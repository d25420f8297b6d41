"""Checkpoints that a kill cannot break."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dhr_lightning.artifacts.runs import LAST, PREVIOUS


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then replaces; the checkpoint before it stays as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Save atomically on any file system, because the temporary file is in the same folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            kept = path.with_name(f".tmp-{os.getpid()}-{PREVIOUS}")
            try:
                os.link(path, kept)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, kept)
            os.replace(kept, path.with_name(PREVIOUS))
            kept.unlink(missing_ok=True)  # still there if both were links to one file
        os.replace(temporary, path)


class LastCheckpoint(Checkpoint):
    """Keeps the weights after the last finished epoch, saved after every other callback has run.

    None is chosen by a metric: that would need pixel labels. Fitted tasks take no optimiser step, which is why
    Lightning's own `ModelCheckpoint` (it skips a step it has seen) does not serve here.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; every rank takes part."""
        if trainer.fast_dev_run:
            return
        folder = trainer.log_dir or trainer.default_root_dir
        trainer.save_checkpoint(Path(folder) / "checkpoints" / LAST, weights_only=False)
