import logging
from types import SimpleNamespace

import pytest

from dhr_lightning.callbacks import progress
from dhr_lightning.callbacks.progress import PlainProgress


def test_long_epochs_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    trainer = SimpleNamespace(current_epoch=0, max_epochs=2, num_training_batches=4, is_global_zero=True)
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
