"""What tasks on stored features share: layers, statistics of the training features, gradients, resumed fits."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.callbacks.average import WeightAverage
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods import stored
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.stored import StoredTask
from tests.pipeline_workspace import same_tensors
from tests.stored_samples import (
    MASKS,
    WSSSDataModule,
    features_of,
    fit,
    last,
    predict,
    put_masks,
    same_outputs,
    stored_module,
    task_on,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
LIGHT = ("tag_head", "light")


def module_of(root: Path, folder: Path, method: str, **options: Any) -> WSSSDataModule:
    inputs = {"masks": MASKS} if method == "light" else {}
    datamodule = stored_module(root, folder, method, inputs=inputs, **options)
    if method == "light":
        put_masks(datamodule)
    return datamodule


def cells(datamodule: WSSSDataModule, images: list[int]) -> np.ndarray:
    """Features `(cells, 7)` of some training images."""
    records = datamodule.records("train")
    return np.concatenate([features_of(records[index]).reshape(7, -1).T.astype(float) for index in images])


class Stop(L.Callback):
    """Interrupts the run in the middle of its second epoch."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        if (trainer.current_epoch, index) == (1, 1):
            raise RuntimeError("stopped")


class Gradients(L.Callback):
    """Names of the parameters that get a gradient, and what the optimiser holds."""

    def on_before_optimizer_step(self, trainer: L.Trainer, task: BaseTask, optimizer: torch.optim.Optimizer) -> None:
        self.found = {name for name, one in task.named_parameters() if one.grad is not None and one.grad.any()}
        self.held = {id(one) for group in optimizer.param_groups for one in group["params"]}

    def on_train_batch_start(self, trainer: L.Trainer, task: BaseTask, batch: Any, index: int) -> None:
        self.inputs = {port: one.requires_grad for port, one in batch["inputs"].items()}
        self.pixels = "pixels" in batch


@pytest.mark.parametrize("method", LIGHT)
def test_statistics_are_those_of_all_training_cells_and_stay_with_the_weights(
    tiny_voc: Path, tmp_path: Path, method: str
):
    """Images of several grids share a batch: its padding does not count, and no validation image does."""
    datamodule = module_of(tiny_voc, tmp_path, method, predict_batch_size=3)
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, WeightAverage(0.9), epochs=1)
    expected = cells(datamodule, [0, 1, 2, 3])
    np.testing.assert_allclose(task.network.mean, expected.mean(0), rtol=1e-4)
    np.testing.assert_allclose(task.network.std, expected.std(0), rtol=1e-4)
    kept = torch.load(last(tmp_path), weights_only=True)["state_dict"]
    assert torch.equal(kept["network.mean"], task.network.mean)
    assert torch.equal(kept["network.std"], task.network.std)


def test_statistics_of_many_images_are_those_of_some_evenly_over_the_list(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stored, "STATISTICS_IMAGES", 2)
    datamodule = module_of(tiny_voc, tmp_path, "tag_head")
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, epochs=1)
    np.testing.assert_allclose(task.network.mean, cells(datamodule, [0, 2]).mean(0), rtol=1e-4)


def test_layers_are_read_by_name_in_the_order_of_the_setting(tiny_voc: Path, tmp_path: Path):
    datamodule = module_of(tiny_voc, tmp_path, "tag_head")
    task = task_on(datamodule, taps=["keys", "block1"])
    fit(task, datamodule, tmp_path, epochs=1)
    assert task.tap_channels() == {"keys": 3, "block1": 4}
    expected = cells(datamodule, [0, 1, 2, 3])[:, [4, 5, 6, 0, 1, 2, 3]]
    np.testing.assert_allclose(task.network.mean, expected.mean(0), rtol=1e-4)
    parts = task.split_taps(torch.arange(7.0).view(1, 7, 1, 1))
    assert {name: one.flatten().tolist() for name, one in parts.items()} == {"keys": [0, 1, 2], "block1": [3, 4, 5, 6]}

    alone = task_on(datamodule, taps=["keys"])
    fit(alone, datamodule, tmp_path, epochs=1)
    np.testing.assert_allclose(alone.network.mean, cells(datamodule, [0, 1, 2, 3])[:, 4:].mean(0), rtol=1e-4)
    assert task_on(datamodule).taps is None


def test_features_without_names_are_one_layer(tiny_voc: Path, tmp_path: Path):
    datamodule = module_of(tiny_voc, tmp_path, "light", taps=None)
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, epochs=1)
    assert task.tap_channels() == task.network.channels == {"features": 7}


def test_a_layer_that_is_not_stored_is_refused(tiny_voc: Path, tmp_path: Path):
    datamodule = module_of(tiny_voc, tmp_path, "tag_head")
    with pytest.raises(ConfigError, match=r"tag_head wants the tap 'values', but .* hold block1, keys"):
        fit(task_on(datamodule, taps=["keys", "values"]), datamodule, tmp_path)


@pytest.mark.parametrize("method", LIGHT)
def test_gradients_reach_the_light_parts_and_nothing_else(tiny_voc: Path, tmp_path: Path, method: str):
    datamodule, seen = module_of(tiny_voc, tmp_path, method), Gradients()
    task = task_on(datamodule)
    buffers: dict[str, Tensor] = {}

    class Begin(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: BaseTask) -> None:
            buffers.update({name: one.clone() for name, one in pl_module.named_buffers()})

    fit(task, datamodule, tmp_path, seen, Begin(), epochs=1)
    network = {f"network.{name}": one for name, one in task.network.named_parameters()}
    assert seen.found == set(network) == {name for name, _ in task.named_parameters()}
    assert seen.held == {id(one) for one in network.values()}
    assert not any(seen.inputs.values())
    assert not seen.pixels  # no photo is read to train
    for name in ("network.mean", "network.std"):
        assert torch.equal(task.get_buffer(name), buffers[name])


@pytest.mark.parametrize("method", LIGHT)
def test_a_resumed_fit_gives_the_weights_of_an_uninterrupted_one(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    options = {"background": "learnt", "lr": 30.0} if method == "tag_head" else {"head": {"width": 8, "dropout": 0.5}}
    datamodule = module_of(tiny_voc, tmp_path, method)
    whole = task_on(datamodule, **options)
    fit(whole, datamodule, tmp_path / "whole", WeightAverage(0.9))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(task_on(datamodule, **options), datamodule, tmp_path / "parts", WeightAverage(0.9), Stop())

    def refuse(task: StoredTask) -> None:
        raise AssertionError("statistics once more")

    monkeypatch.setattr(StoredTask, "feature_statistics", refuse)
    continued, parts = task_on(datamodule, **options), tmp_path / "parts"
    fit(continued, datamodule, parts, WeightAverage(0.9), checkpoint=last(parts), seed=9)
    assert same_tensors(continued.state_dict(), whole.state_dict())


@pytest.mark.parametrize("method", LIGHT)
def test_the_average_of_a_network_that_is_built_late_is_what_is_kept(tiny_voc: Path, tmp_path: Path, method: str):
    datamodule = module_of(tiny_voc, tmp_path, method)
    options = {"background": "scores"} if method == "tag_head" else {}  # a learnt one is made of the student
    plain, averaged = task_on(datamodule, **options), task_on(datamodule, **options)
    fit(plain, datamodule, tmp_path / "plain", epochs=1)
    fit(averaged, datamodule, tmp_path / "averaged", WeightAverage(0.9, warmup=False), epochs=1)
    kept = torch.load(last(tmp_path / "averaged"), weights_only=True)
    assert same_tensors(kept["student_state_dict"], plain.state_dict())
    assert same_tensors(kept["state_dict"], averaged.state_dict())
    name = "network.classifier.weight"
    assert not torch.equal(averaged.state_dict()[name], plain.state_dict()[name])


@pytest.mark.parametrize("method", LIGHT)
def test_predictions_depend_on_neither_batch_nor_order(tiny_voc: Path, tmp_path: Path, method: str):
    datamodule = module_of(tiny_voc, tmp_path, method)
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, epochs=2)
    found = []
    for size, order in ((1, 1), (4, 1), (3, -1)):
        datamodule.predict_batch_size = size
        datamodule._records = {split: records[::order] for split, records in datamodule._records.items()}
        found.append(predict(task, datamodule, tmp_path))
    assert len(found[0]) == (4 if method == "tag_head" else 2)
    assert same_outputs(found[0], found[1])
    assert same_outputs(found[0], found[2])
