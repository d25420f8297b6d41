"""Moving average of a task's weights, for everything but training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dhr_lightning.errors import ConfigError

STUDENT = "student_state_dict"


class WeightAverage(L.Callback):
    """Keeps an exponential moving average of the weights and batch-norm statistics while a task is fitted.

    The weights that the optimiser changes are the student's. Validation, the `state_dict` of the checkpoint and hence
    every later command use the average. The student trains and makes the masks of DHR; the checkpoint holds it as
    `student_state_dict`, so that a resumed run repeats exactly. Integers, such as counters, are copied.

    Args:
        decay: share of the average that each step keeps, in [0, 1).
        warmup: at step k, from 0, keep only `min(decay, (1 + k) / (10 + k))`, so that a short run forgets its start.

    Raises:
        ConfigError: if `decay` is out of range.

    Source: published code of DHR (arXiv:2404.00380), decay 0.999, not used for its masks.
    Differs: `warmup`, which is not published, is on by default: 400 steps of 0.999 would keep two thirds of the
        initial weights. Lightning's `WeightAveraging` does not serve: it averages integers too, copies the whole task,
        and keeps the average where the task is at set-up, which is the host.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"Expected model.init_args.ema in [0, 1) or null, but got {decay}.")
        self.decay, self.warmup = decay, warmup
        self.average: dict[str, Tensor] = {}
        self._student: dict[str, Tensor] = {}
        self._updates = self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start from the weights as they are now or, in a resumed run, from the average of the checkpoint."""
        loaded, self._student = self.average, pl_module.state_dict()
        self.average = {name: tensor.clone() for name, tensor in self._student.items()}  # device, memory format
        for name, tensor in loaded.items():
            self.average[name].copy_(tensor)
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update after each step of the optimiser."""
        if trainer.global_step == self._step:
            return
        kept = min(self.decay, (1 + self._updates) / (10 + self._updates)) if self.warmup else self.decay
        update_average(list(self.average.values()), list(self._student.values()), kept)
        self._step, self._updates = trainer.global_step, self._updates + 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the average into the task."""
        self.swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the student back."""
        self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights of the task; nothing happens outside a fit."""
        for name, average in self.average.items():
            student = self._student[name].clone()
            self._student[name].copy_(average)
            average.copy_(student)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the task."""
        self.swap()
        self.average, self._student, self._updates = {}, {}, 0

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, which the warm-up depends on."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on."""
        self._updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both: the average as `state_dict`, because everybody else reads that."""
        if self.average:
            checkpoint[STUDENT], checkpoint["state_dict"] = checkpoint["state_dict"], dict(self.average)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the student back to the task that continues its fit; Lightning has loaded the average into it."""
        if trainer.state.fn == TrainerFn.FITTING and STUDENT in checkpoint:
            self.average = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[STUDENT])


@torch.no_grad()
def update_average(average: Sequence[Tensor], student: Sequence[Tensor], kept: float) -> None:
    """Move an average towards the student in place: `average * kept + student * (1 - kept)`, integers copied.

    Args:
        average: tensors to change.
        student: tensors of the same shapes on the same device.
        kept: share of the average that stays, in [0, 1].
    """
    pairs = list(zip(average, student, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    update = get_ema_multi_avg_fn(kept)  # type: ignore[no-untyped-call]  # torch has no types here
    update([counted for counted, _ in floats], [current for _, current in floats], None)
    for counted, current in pairs:
        if not counted.is_floating_point():
            counted.copy_(current)


@contextmanager
def averaged_weights(trainer: L.Trainer) -> Iterator[None]:
    """With the average in the task, if the fit keeps one."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAverage)]
    for callback in averages:
        callback.swap()
    try:
        yield
    finally:
        for callback in averages:
            callback.swap()
