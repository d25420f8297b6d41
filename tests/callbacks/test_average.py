from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from dhr_lightning.callbacks import panels
from dhr_lightning.callbacks.average import WeightAverage, averaged_weights, update_average
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from dhr_lightning.cli import run_lightning
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.segmenters.wss.task import WSSTask
from tests.pipeline_workspace import Workspace, same_tensors
from tests.stand_ins import run_folder
from tests.task_samples import make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
Weights = dict[str, Tensor]


class Batches(L.LightningDataModule):
    """Ten batches of two crops, in a fixed order, and one with ground truth."""

    seed = 0

    def weights(self, port: str) -> None:
        """There is no earlier step."""

    def train_dataloader(self) -> DataLoader[Any]:
        batches = [make_batch([[1], [2, 3]], [(32, 32), (32, 32)]) for _ in range(10)]
        for index, batch in enumerate(batches):
            batch["image"] = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(index))
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        batch = make_batch([[1]], [(32, 32)])
        return DataLoader([{**batch, "gt_mask": batch["inputs"]["masks"]}], batch_size=None)


def copy_of(task: L.LightningModule) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}


class Watch(L.Callback):
    """Weights in the task at the start, after every step, in every validation, and at the end of every epoch."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []
        self.validations: list[Weights] = []
        self.epochs: list[Weights] = []
        self.borrowed: list[Weights] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = copy_of(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps.append(copy_of(pl_module))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validations.append(copy_of(pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append(copy_of(pl_module))
        with averaged_weights(trainer):
            self.borrowed.append(copy_of(pl_module))


class Stop(L.Callback):
    """Interrupts the run in the middle of an epoch."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if (trainer.current_epoch, index) == (1, 3):
            raise RuntimeError("stopped")


def fit(
    folder: Path, *callbacks: L.Callback, epochs: int = 2, checkpoint: Path | None = None, **options: Any
) -> tuple[WSSTask, L.Trainer]:
    task = make_task("WSSTask", lr=0.05, optimizer="sgd")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, LastCheckpoint()],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(task.train(), datamodule=Batches(), ckpt_path=checkpoint, weights_only=True)
    return task, trainer


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def reference(start: Weights, steps: list[Weights], *, warmup: bool) -> Weights:
    """The average after some steps, tensor by tensor in double precision."""
    average = {name: tensor.double() for name, tensor in start.items()}
    for k, student in enumerate(steps):
        kept = min(0.99, (1 + k) / (10 + k)) if warmup else 0.99
        for name, tensor in student.items():
            average[name] = kept * average[name] + (1 - kept) * tensor.double()
            if not tensor.is_floating_point():
                average[name] = tensor.double()
    return average


def assert_close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_equals_a_slow_reference_and_is_what_validation_sees(warmup: bool, tmp_path: Path):
    watch = Watch()
    task, _ = fit(tmp_path, WeightAverage(0.99, warmup), watch)
    assert len(watch.steps) == 20
    assert len(watch.validations) == 2
    for epoch in range(2):
        steps = watch.steps[: 10 * (epoch + 1)]
        expected = reference(watch.start, steps, warmup=warmup)
        assert_close(watch.validations[epoch], expected)
        assert_close(watch.borrowed[epoch], expected)
        assert same_tensors(watch.epochs[epoch], steps[-1])
    assert_close(copy_of(task), expected)
    statistics = next(name for name in watch.start if name.endswith("running_var"))
    assert not torch.allclose(task.state_dict()[statistics], watch.steps[-1][statistics], rtol=1e-3)
    counters = [tensor for name, tensor in task.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {20}


def test_the_student_is_trained_as_if_there_were_no_average(tmp_path: Path):
    with_average, without = Watch(), Watch()
    fit(tmp_path / "one", WeightAverage(), with_average)
    fit(tmp_path / "other", without)
    assert same_tensors(with_average.steps[-1], without.steps[-1])


def test_checkpoints_hold_the_average_as_the_weights_and_the_student_beside_it(tmp_path: Path):
    watch = Watch()
    task, _ = fit(tmp_path, WeightAverage(), watch)
    checkpoint = torch.load(last(tmp_path), weights_only=True)
    assert same_tensors(checkpoint["state_dict"], task.state_dict())
    assert same_tensors(checkpoint["student_state_dict"], watch.steps[-1])
    assert not same_tensors(checkpoint["state_dict"], checkpoint["student_state_dict"])
    fresh = make_task("WSSTask")
    L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[WeightAverage()]).validate(
        fresh, datamodule=Batches(), ckpt_path=last(tmp_path), verbose=False, weights_only=True
    )
    assert same_tensors(fresh.state_dict(), checkpoint["state_dict"])


def test_a_resumed_run_ends_with_the_very_weights_of_an_undisturbed_one(tmp_path: Path):
    fit(tmp_path / "undisturbed", WeightAverage(), epochs=3)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "broken", WeightAverage(), Stop(), epochs=3)
    fit(tmp_path / "broken", WeightAverage(), epochs=3, checkpoint=last(tmp_path / "broken"))
    one, other = (torch.load(last(tmp_path / name), weights_only=True) for name in ("undisturbed", "broken"))
    for part in ("state_dict", "student_state_dict"):
        assert same_tensors(one[part], other[part])
    (state,) = (value for key, value in other["callbacks"].items() if key == "WeightAverage")
    assert state == {"updates": 30}


def test_a_run_without_an_average_can_be_continued_with_one(tmp_path: Path):
    fit(tmp_path, epochs=1)
    watch = Watch()
    fit(tmp_path, WeightAverage(0.99), watch, epochs=2, checkpoint=last(tmp_path))
    assert_close(watch.borrowed[-1], reference(watch.start, watch.steps, warmup=True))


def test_steps_are_counted_and_not_batches(tmp_path: Path):
    average = WeightAverage()
    _, trainer = fit(tmp_path, average, epochs=1, accumulate_grad_batches=5)
    assert trainer.global_step == 2
    (state,) = torch.load(last(tmp_path), weights_only=True)["callbacks"].values()
    assert state == {"updates": 2}


def test_integers_are_copied_and_nothing_is_replaced():
    average = [torch.zeros(3), torch.tensor(3), torch.zeros(2, dtype=torch.float64)]
    kept = [tensor.data_ptr() for tensor in average]
    update_average(average, [torch.ones(3), torch.tensor(8), torch.ones(2, dtype=torch.float64)], 0.75)
    assert [tensor.tolist() for tensor in average] == [[0.25] * 3, 8, [0.25] * 2]
    assert [tensor.data_ptr() for tensor in average] == kept


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float):
    with pytest.raises(ConfigError, match=rf"ema in \[0, 1\) or null, but got {decay}"):
        WeightAverage(decay)


def test_pictures_show_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task, average, seen = torch.nn.Linear(1, 1, bias=False), WeightAverage(), []
    task.weight.data.fill_(5)
    average.on_train_start(SimpleNamespace(global_step=0), task)
    average.average["weight"].fill_(7)

    def draw(task: Any, *_: Any) -> np.ndarray:
        seen.append(task.weight.item())
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(panels, "draw_panel", draw)
    trainer = SimpleNamespace(
        callbacks=[average],
        current_epoch=0,
        max_epochs=1,
        max_steps=-1,
        num_training_batches=1,
        global_step=1,
        is_global_zero=True,
        loggers=[TensorBoardLogger(tmp_path)],
        datamodule=None,
    )
    panels.Panels().on_train_epoch_end(trainer, task)
    assert seen == [7]
    assert task.weight.item() == 5


def test_segmenters_keep_an_average_and_other_tasks_do_not(finished_runs: Path):
    for method, expected in {"cam": False, "patches": False, "wss": True, "mars": False, "dhr": True}.items():
        path = run_folder(finished_runs, method) / "version_0" / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert ("student_state_dict" in checkpoint) == expected, method


def test_null_switches_the_average_off(workspace: Workspace):
    changes = ("--model.init_args.ema=null", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0")
    before = set(Path("runs/microworld/wss").iterdir())
    run_lightning(["fit", *workspace.configs("baseline"), *changes])
    (folder,) = set(Path("runs/microworld/wss").iterdir()) - before  # the average is part of what a fit is made from
    path = folder / "version_0" / "checkpoints" / "last.ckpt"
    assert "student_state_dict" not in torch.load(path, weights_only=True)
