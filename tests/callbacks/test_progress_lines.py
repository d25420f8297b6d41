import logging
from types import SimpleNamespace

import pytest

from dhr_lightning.callbacks import progress
from dhr_lightning.callbacks.progress import PlainProgress, planned_epochs


def trainer_of(*, max_epochs: int | None, max_steps: int = -1, **others: object) -> SimpleNamespace:
    """A trainer with epochs of four batches."""
    return SimpleNamespace(max_epochs=max_epochs, max_steps=max_steps, num_training_batches=4, **others)


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "planned"), [(3, -1, 3), (3, 100, 3), (3, 8, 2), (1000, 9, 3), (-1, 9, 3)]
)
def test_a_limit_of_steps_ends_a_fit_sooner(max_epochs: int, max_steps: int, planned: int):
    assert planned_epochs(trainer_of(max_epochs=max_epochs, max_steps=max_steps)) == planned


def test_long_epochs_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    trainer = trainer_of(max_epochs=2, current_epoch=0, global_step=0, is_global_zero=True)
    callback = PlainProgress()
    progress.log.addHandler(handler)
    level = progress.log.level
    progress.log.setLevel(logging.INFO)
    try:
        callback.on_train_start(trainer, SimpleNamespace(step="cam"))
        for _ in range(4):
            callback.on_train_batch_end(trainer, SimpleNamespace(step="cam"))
    finally:
        progress.log.removeHandler(handler)
        progress.log.setLevel(level)
    assert lines == [
        "cam epoch 1: 2/8 (25 %), 31 s, 1 min 33 s left",
        "cam epoch 1: 4/8 (50 %), 1 min 02 s, 1 min 02 s left",
    ]
