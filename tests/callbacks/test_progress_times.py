"""Which lines a run without a terminal prints, and what they say."""

from types import SimpleNamespace
from typing import Any

import pytest

from dhr_lightning.callbacks import progress
from dhr_lightning.callbacks.progress import PlainProgress, planned_epochs
from tests.pipeline_workspace import Lines
from tests.stand_ins import Clock, trainer_of

pytest_plugins = ["tests.pipeline_fixtures"]
TASK = SimpleNamespace(step="wss")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(monkeypatch, progress)


def fit_of(**others: Any) -> SimpleNamespace:
    """A fit of four epochs with five batches each."""
    usual = {"max_epochs": 4, "max_steps": -1, "global_step": 0, "accumulate_grad_batches": 1}
    return trainer_of(**{**usual, "num_training_batches": 5, "progress_bar_metrics": {}, **others})


def train(callback: PlainProgress, trainer: SimpleNamespace, clock: Clock, seconds: list[float]) -> None:
    """One batch after each of these times."""
    for passed in seconds:
        clock.now += passed
        callback.on_train_batch_end(trainer, TASK)


def test_an_epoch_ends_with_its_metrics_and_the_time_left(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of(progress_bar_metrics={"v_num": 3, "loss": 0.51239, "val/miou": 0.25})
    callback.on_train_start(trainer, TASK)
    clock.now += 20
    callback.on_train_epoch_end(trainer, TASK)
    assert lines.messages == ["wss epoch 1: loss 0.5124, val/miou 0.2500 [1/4 (25 %), 20 s, 1 min 00 s left]"]


def test_a_resumed_fit_counts_the_epochs_that_it_runs_itself(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of(current_epoch=2)
    callback.on_train_start(trainer, TASK)
    train(callback, trainer, clock, [10, 25])
    clock.now += 15
    callback.on_train_epoch_end(trainer, TASK)
    trainer.current_epoch = 3
    train(callback, trainer, clock, [31])
    assert lines.messages == [
        "wss epoch 3: 2/10 (20 %), 35 s, 2 min 20 s left",
        "wss epoch 3:  [1/2 (50 %), 50 s, 50 s left]",
        "wss epoch 4: 3/10 (30 %), 1 min 21 s, 3 min 09 s left",
    ]


def test_steps_that_end_a_fit_within_an_epoch_are_counted(clock: Clock, lines: Lines):
    for steps, done, accumulated, whole in ((3, 0, 1, 3), (7, 0, 1, 7), (9, 5, 1, 4), (2, 0, 2, 4), (100, 0, 1, 20)):
        callback, trainer = PlainProgress(), fit_of(max_steps=steps, accumulate_grad_batches=accumulated)
        trainer.global_step = done
        callback.on_train_start(trainer, TASK)
        trainer.global_step += 1
        train(callback, trainer, clock, [31])
        assert lines.messages[-1].startswith(f"wss epoch 1: 1/{whole} ("), steps


def test_a_second_fit_starts_its_own_count_and_clock(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of()
    for _ in range(2):
        callback.on_train_start(trainer, TASK)
        train(callback, trainer, clock, [20, 20])
        clock.now += 100
    assert lines.messages == ["wss epoch 1: 2/20 (10 %), 40 s, 6 min 00 s left"] * 2


def test_lines_within_an_epoch_are_more_than_half_a_minute_apart(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of()
    callback.on_train_start(trainer, TASK)
    train(callback, trainer, clock, [30, 0.5, 29.5])
    assert [line.partition(":")[2] for line in lines.messages] == [" 2/20 (10 %), 30 s, 4 min 34 s left"]
    train(callback, trainer, clock, [1])
    assert len(lines.messages) == 2


def test_the_line_of_an_epoch_puts_the_next_one_off(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of()
    callback.on_train_start(trainer, TASK)
    clock.now += 29
    callback.on_train_epoch_end(trainer, TASK)
    train(callback, trainer, clock, [15])
    assert len(lines.messages) == 1


def test_without_a_known_length_the_steps_are_counted_only(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of(num_training_batches=float("inf"), max_epochs=1)
    callback.on_train_start(trainer, object())
    clock.now += 31
    callback.on_train_batch_end(trainer, object())
    callback.on_train_epoch_end(trainer, object())
    assert lines.messages == ["fit epoch 1: 1, 31 s", "fit epoch 1:  [1/1 (100 %), 31 s, 0 s left]"]


def test_one_rank_speaks_for_all(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), fit_of(rank=1, num_predict_batches=[3])
    callback.on_train_start(trainer, TASK)
    train(callback, trainer, clock, [31])
    callback.on_train_epoch_end(trainer, TASK)
    callback.on_predict_start(trainer, TASK)
    clock.now += 11
    callback.on_predict_batch_end(trainer, TASK)
    assert lines.messages == []


def test_predictions_of_all_splits_are_counted_together(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), trainer_of(num_predict_batches=[6, 2])
    for _ in range(2):
        callback.on_predict_start(trainer, TASK)
        for seconds in (10, 2, 8, 3):
            clock.now += seconds
            callback.on_predict_batch_end(trainer, TASK)
        clock.now += 1000
    assert (
        lines.messages
        == [
            "wss predict: 2/8 (25 %), 12 s, 36 s left",
            "wss predict: 4/8 (50 %), 23 s, 23 s left",
        ]
        * 2
    )


def test_a_prediction_of_a_module_without_a_name_is_shown(clock: Clock, lines: Lines):
    callback, trainer = PlainProgress(), trainer_of(num_predict_batches=[2])
    callback.on_predict_start(trainer, object())
    clock.now += 10.5
    callback.on_predict_batch_end(trainer, object())
    assert lines.messages == [" predict: 1/2 (50 %), 10 s, 10 s left"]


@pytest.mark.parametrize(
    ("batches", "epochs", "steps", "planned"),
    [
        (5, None, -1, 0),
        (5, -1, -1, -1),
        (float("inf"), 3, 7, 3),
        (0, 9, 7, 7),
        (5, 9, 0, 0),
        (5, 9, 11, 3),
        (5, 0, 9, 0),
    ],
)
def test_planned_epochs_of_unusual_fits(batches: float, epochs: int | None, steps: int, planned: int):
    trainer = SimpleNamespace(max_epochs=epochs, max_steps=steps, num_training_batches=batches)
    assert planned_epochs(trainer) == planned
