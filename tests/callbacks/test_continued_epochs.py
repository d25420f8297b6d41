"""A fit that stops in the middle of an epoch goes on with the other images, to the weights of one that did not stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from dhr_lightning.callbacks.average import WeightAverage
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from dhr_lightning.cli import quiet
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from tests.task_samples import make_task

VOC = list(resolve_dataset({"dataset": "voc", "root": None, "options": None, "limit": None}).classes.names)


class Watch(L.Callback):
    """Notes the images of each step, and stops before a step."""

    def __init__(self, stop: tuple[int, int] | None) -> None:
        self.stop, self.seen = stop, []

    def on_train_batch_start(self, trainer: L.Trainer, task: BaseTask, batch: Any, index: int) -> None:
        if (trainer.current_epoch, index) == self.stop:
            raise RuntimeError("stopped here")
        self.seen.append((trainer.current_epoch, index, *batch["id"]))


class Fits:
    """Fits on four images in batches of one, whole or in two parts."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def run(
        self, task: BaseTask, name: str, stop: tuple[int, int] | None, *, size: int, workers: int, **options: Any
    ) -> tuple[dict[str, Tensor], list[Any]]:
        data = WSSSDataModule(
            "voc", root=str(self.root), workspace=str(self.folder), batch_size=size, num_workers=workers, crop_size=32,
            scale=(0.8, 1.3),
        )  # fmt: skip
        watch, extra = Watch(stop), [WeightAverage(0.5)] if options.pop("average", False) else []
        path = self.folder / name / "checkpoints" / "last.ckpt"
        trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[watch, *extra, LastCheckpoint(minutes=0)],
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
            default_root_dir=self.folder / name, plugins=[AtomicCheckpointIO()], **options,
        )  # fmt: skip
        if stop is None:
            trainer.fit(task.train(), datamodule=data, ckpt_path=path if path.exists() else None)
        else:
            with pytest.raises(RuntimeError, match="stopped here"):
                trainer.fit(task.train(), datamodule=data)
        return {name: value.clone() for name, value in task.state_dict().items()}, watch.seen

    def both(
        self, make: Callable[[], BaseTask], stop: tuple[int, int], *, size: int = 1, workers: int = 0, **options: Any
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Steps of a whole fit and of both parts of another, whose weights are equal."""
        whole, images = self.run(make(), "whole", None, size=size, workers=workers, **options)
        _, first = self.run(make(), "two", stop, size=size, workers=workers, **options)
        torch.manual_seed(99)
        resumed, rest = self.run(make(), "two", None, size=size, workers=workers, **options)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
        return images, first, rest


@pytest.fixture
def fits(tiny_voc: Path, tmp_path: Path) -> Fits:
    quiet()
    return Fits(tiny_voc, tmp_path)


def cam() -> BaseTask:
    return make_task("CAMTask", class_names=VOC)


def stego() -> BaseTask:
    stego = {"points": 3, "neighbours": 3, "crop_size": 32}
    return make_task("StegoTask", class_names=VOC, backbone="test_vit", stego=stego)


def probed() -> BaseTask:
    stego = {"points": 3, "neighbours": 3, "crop_size": 32}
    probes = ("cluster", "linear")
    return make_task("StegoTask", class_names=VOC, backbone="test_vit", stego=stego, probes=probes)


def leopart() -> BaseTask:
    return make_task("LeopartTask", class_names=VOC, optimizer="adamw", lr=1e-3)


def fitted() -> BaseTask:
    return make_task("FittedTask", class_names=VOC, dimension=4)


@pytest.mark.parametrize("stop", [(0, 1), (1, 2), (1, 0)])
def test_the_rest_of_the_epoch_follows_to_the_same_weights(fits: Fits, stop: tuple[int, int]):
    images, first, rest = fits.both(cam, stop)
    assert first + rest == images
    assert len(images) == 12
    assert rest[0][:2] == stop


def cause() -> BaseTask:
    return make_task("CauseTask", class_names=VOC)


def sfc() -> BaseTask:
    return make_task("SFCTask", class_names=VOC)


@pytest.mark.parametrize(("make", "size"), [(stego, 2), (probed, 2), (leopart, 1), (cause, 1), (sfc, 2)])
def test_so_it_does_with_several_views_teachers_and_banks(fits: Fits, make: Callable[[], BaseTask], size: int):
    images, first, rest = fits.both(make, (1, 1), size=size)
    assert first + rest == images


def test_workers_pass_over_the_same_images(fits: Fits):
    images, first, rest = fits.both(cam, (1, 2), workers=2)
    assert first + rest == images


def test_the_average_of_the_weights_goes_on_too(fits: Fits):
    images, first, rest = fits.both(cam, (1, 3), average=True)
    assert first + rest == images


def test_the_gradients_of_one_step_are_never_cut_in_two(fits: Fits):
    images, first, rest = fits.both(cam, (1, 3), accumulate_grad_batches=2)
    assert first[:-1] + rest == images  # the third batch of the epoch belongs to a step that was not taken


def test_an_epoch_that_collects_is_begun_again(fits: Fits):
    images, first, rest = fits.both(fitted, (1, 1))
    assert first[:-1] + rest == images
    assert rest[0][:2] == (1, 0)


def test_another_fit_in_the_same_process_passes_over_nothing(fits: Fits):
    data = WSSSDataModule("voc", root=str(fits.root), workspace=str(fits.folder), batch_size=1, num_workers=0)
    data.load_state_dict({"mask_round": None, "given": {"epoch": 0, "batches": 3}})
    assert [len(list(data.train_dataloader())) for _ in range(2)] == [1, 4]  # the fit that goes on, and the next one


def test_a_time_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"minutes >= 0, but got -1"):
        LastCheckpoint(minutes=-1)
