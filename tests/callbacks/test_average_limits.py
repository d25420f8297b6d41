"""Edges of the moving average: no memory at all, an error while it is borrowed, a second fit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from dhr_lightning.callbacks.average import WeightAverage, averaged_weights, update_average


def layer(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(value)
    return module


def step(callback: WeightAverage, task: nn.Module, value: float, number: int) -> None:
    """One step of the optimiser that sets the weight."""
    task.weight.data.fill_(value)
    callback.on_train_batch_end(SimpleNamespace(global_step=number), task, None, None, 0)


def started(callback: WeightAverage, value: float = 1.0, at: int = 0) -> nn.Module:
    task = layer(value)
    callback.on_train_start(SimpleNamespace(global_step=at), task)
    return task


def test_a_decay_of_zero_keeps_the_last_weights():
    callback = WeightAverage(0.0, warmup=False)
    task = started(callback)
    step(callback, task, 5.0, 1)
    assert callback.average["weight"].item() == 5


@pytest.mark.parametrize(("warmup", "expected"), [(True, [0.1, 2 / 11, 0.2, 0.2]), (False, [0.2] * 4)])
def test_the_first_steps_keep_less_and_later_ones_the_decay(warmup: bool, expected: list[float]):
    callback = WeightAverage(0.2, warmup)
    task = started(callback)
    for number, kept in enumerate(expected, start=1):
        callback.average["weight"].fill_(1.0)
        step(callback, task, 0.0, number)
        assert callback.average["weight"].item() == pytest.approx(kept)
    assert callback.state_dict() == {"updates": 4}


def test_the_published_decay_with_warmup_is_the_default():
    callback = WeightAverage()
    assert (callback.decay, callback.warmup) == (0.999, True)


def test_a_batch_without_a_step_changes_nothing():
    callback = WeightAverage(0.5, warmup=False)
    task = started(callback, at=7)
    step(callback, task, 9.0, 7)
    assert callback.average["weight"].item() == 1
    assert callback.state_dict() == {"updates": 0}
    step(callback, task, 9.0, 8)
    assert callback.average["weight"].item() == 5


def test_the_average_is_a_copy_and_not_the_weights_themselves():
    callback = WeightAverage()
    task = started(callback)
    task.weight.data.fill_(4)
    assert callback.average["weight"].item() == 1


def test_the_student_comes_back_after_an_error():
    callback = WeightAverage()
    task = started(callback)
    callback.average["weight"].fill_(3)

    def draw() -> None:
        with averaged_weights(SimpleNamespace(callbacks=[object(), callback])):
            assert task.weight.item() == 3
            raise RuntimeError("drawing")

    with pytest.raises(RuntimeError, match="drawing"):
        draw()
    assert task.weight.item() == 1
    assert callback.average["weight"].item() == 3
    assert not task.weight.grad_fn


def test_a_second_fit_starts_a_new_average():
    callback = WeightAverage(0.5, warmup=False)
    task = started(callback)
    step(callback, task, 3.0, 1)
    callback.on_train_end(None, task)
    assert task.weight.item() == 2
    assert callback.state_dict() == {"updates": 0}
    callback.swap()  # outside a fit
    assert task.weight.item() == 2
    other = started(callback, 8.0)
    assert callback.average["weight"].item() == 8
    step(callback, other, 4.0, 1)
    assert callback.average["weight"].item() == 6


def loaded(fn: TrainerFn, checkpoint: dict[str, Any]) -> tuple[WeightAverage, nn.Module]:
    """What a command makes of a checkpoint with average 2 and student 1; Lightning has loaded the average."""
    callback, task = WeightAverage(), layer(2.0)
    callback.on_load_checkpoint(SimpleNamespace(state=SimpleNamespace(fn=fn)), task, checkpoint)
    return callback, task


BOTH = {"state_dict": {"weight": torch.full((1, 1), 2.0)}, "student_state_dict": {"weight": torch.ones(1, 1)}}


def test_only_a_fit_gets_the_student_back():
    for fn in (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING):
        callback, task = loaded(fn, BOTH)
        assert (task.weight.item(), callback.average) == (2, {})
    callback, task = loaded(TrainerFn.FITTING, BOTH)
    assert task.weight.item() == 1
    callback.on_train_start(SimpleNamespace(global_step=4), task)
    assert callback.average["weight"].item() == 2
    callback, task = loaded(TrainerFn.FITTING, {"state_dict": BOTH["state_dict"]})
    assert (task.weight.item(), callback.average) == (2, {})


def test_a_checkpoint_outside_a_fit_is_left_as_it_is():
    checkpoint = {"state_dict": {"weight": torch.ones(1)}}
    WeightAverage().on_save_checkpoint(None, layer(1.0), checkpoint)
    assert checkpoint == {"state_dict": {"weight": torch.ones(1)}}


def test_average_and_student_must_have_as_many_tensors():
    with pytest.raises(ValueError, match="zip"):
        update_average([torch.zeros(1)], [torch.ones(1), torch.ones(1)], 0.5)
