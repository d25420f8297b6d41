"""The light segmenter that rebalances its own masks: what each round is made from, and what it trains on."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.callbacks.average import WeightAverage
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.masks.light_dhr.task import LightDHRTask
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.soft_labels import class_shares
from tests.pipeline_workspace import same_tensors
from tests.stored_samples import CAMS, MASKS, fit, last, predict, put_cams, put_masks, stored_module, task_on
from tests.task_samples import make_task

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have


@pytest.fixture
def datamodule(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    module = stored_module(tiny_voc, tmp_path / "workspace", "light_dhr", inputs={"masks": MASKS, "cam": CAMS})
    put_masks(module)
    put_cams(module)
    return module


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, str, RebalanceInputs]]:
    """Round, image and inputs of every mask that is made."""
    calls: list[tuple[int | None, str, RebalanceInputs]] = []
    real = LightDHRTask.mask_inputs

    def spy(task: LightDHRTask, batch: Any) -> RebalanceInputs:
        inputs = real(task, batch)
        calls.append((task.trainer.datamodule.mask_round, batch["id"][0], inputs))
        return inputs

    monkeypatch.setattr(LightDHRTask, "mask_inputs", spy)
    return calls


class Labels(L.Callback):
    """Labels that each epoch trains on, by image."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, task: BaseTask, batch: Any, index: int) -> None:
        shares = batch["inputs"]["masks"]
        self.found |= {(trainer.current_epoch, one): share for one, share in zip(batch["id"], shares, strict=True)}


OPTIONS: dict[str, Any] = {"mirror": 0.0, "crop_cells": 100, "refine": "none", "lr": 1.0}


def test_the_first_round_is_made_from_cams_and_layers(datamodule: WSSSDataModule, tmp_path: Path, made: list[Any]):
    datamodule.predict_batch_size = 1
    task = task_on(datamodule, **OPTIONS)
    fit(task, datamodule, tmp_path, PseudoMaskRefresh(every=1), epochs=1)
    assert [number for number, _, _ in made] == [None] * 4
    for (_, name, inputs), record in zip(made, datamodule.records("train"), strict=True):
        assert name == record.id
        stored = {key: one for key, one in _whole(datamodule, record)["inputs"].items()}
        scaled = task.network.standardize(stored["features"])
        torch.testing.assert_close(inputs.uss, scaled[:, 4:])
        assert len(inputs.wss) == 1
        torch.testing.assert_close(inputs.wss[0], scaled[:, :4])
        assert not inputs.cam[:, 0].any()
        assert float(inputs.cam[:, 1:].max()) == pytest.approx(1, abs=0.1)
        assert torch.equal(inputs.mask, stored["masks"])


def _whole(datamodule: WSSSDataModule, record: Any) -> Any:
    (batch,) = datamodule.whole_dataloader([record], when="refresh")
    return datamodule.on_after_batch_transfer(batch, 0)


def test_later_rounds_are_made_from_the_network(datamodule: WSSSDataModule, tmp_path: Path, made: list[Any]):
    """The student of that moment: the fit ends after the epoch whose end makes the round."""
    datamodule.predict_batch_size = 1

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, task: BaseTask) -> None:
            if trainer.current_epoch == 0:
                self.weights = {name: one.clone() for name, one in task.state_dict().items()}

    keep = Keep()
    task = task_on(datamodule, features={"uss": ["block1"], "wss": ["keys"]}, **OPTIONS)
    fit(task, datamodule, tmp_path, WeightAverage(0.9), keep, PseudoMaskRefresh(every=1), epochs=2)
    assert [number for number, _, _ in made] == [None] * 4 + [0] * 4
    again = task_on(datamodule, features={"uss": ["block1"], "wss": ["keys"]}, **OPTIONS)
    again._trainer = task._trainer
    again.configure_model()
    again.load_state_dict(keep.weights)
    for (_, _, inputs), record in zip(made[4:], datamodule.records("train"), strict=True):
        features = _whole(datamodule, record)["inputs"]["features"]
        with torch.no_grad():
            encoded = again.network.encode(features)
            probability = again.network.classify(encoded).softmax(1)[0]
        torch.testing.assert_close(inputs.wss[1], encoded)
        torch.testing.assert_close(inputs.uss, again.network.standardize(features)[:, :4])
        torch.testing.assert_close(inputs.wss[0], again.network.standardize(features)[:, 4:])
        for place, tag in enumerate(record.tags, start=1):
            torch.testing.assert_close(inputs.cam[0, place], probability[tag] / probability[tag].max())
        assert inputs.classes.keys.tolist() == [[0, *record.tags]]


def test_an_epoch_trains_on_the_masks_of_its_round(datamodule: WSSSDataModule, tmp_path: Path):
    labels = Labels()
    task = task_on(datamodule, **OPTIONS)
    fit(task, datamodule, tmp_path, labels, PseudoMaskRefresh(every=2), epochs=3)
    assert datamodule.mask_round == 1
    rounds = []
    for epoch, number in ((0, 0), (1, 0), (2, 1)):
        for record in datamodule.records("train"):
            mask = read_mask(datamodule.store.path(f"light_dhr/mask/round_{number:02d}", "train", record.id))
            found = labels.found[epoch, record.id]
            height, width = (2 * side // 8 for side in mask.shape)
            shares, weight = class_shares(torch.from_numpy(mask.astype(np.int64)), 21, grid=(height, width))
            torch.testing.assert_close(found[:, :height, :width], (shares * weight[:, None])[0])
            rounds.append((number, mask.tobytes()))
    assert len({content for number, content in rounds if number == 0} ^ {one for n, one in rounds if n == 1})


def test_a_resumed_fit_goes_on_with_its_round(datamodule: WSSSDataModule, tiny_voc: Path, tmp_path: Path):
    whole = task_on(datamodule, **OPTIONS)
    fit(whole, datamodule, tmp_path / "whole", PseudoMaskRefresh(every=1), epochs=3)

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, task: BaseTask) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("stopped")

    def fresh() -> WSSSDataModule:
        module = stored_module(tiny_voc, tmp_path / "other", "light_dhr", inputs={"masks": MASKS, "cam": CAMS})
        return module

    module = fresh()
    put_masks(module)
    put_cams(module)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(task_on(module, **OPTIONS), module, tmp_path / "parts", PseudoMaskRefresh(every=1), Stop(), epochs=3)
    module, continued = fresh(), task_on(datamodule, **OPTIONS)
    checkpoint = last(tmp_path / "parts")
    fit(continued, module, tmp_path / "parts", PseudoMaskRefresh(every=1), epochs=3, checkpoint=checkpoint, seed=5)
    assert module.mask_round == 2
    assert same_tensors(continued.state_dict(), whole.state_dict())


@torch.no_grad()
def test_it_predicts_as_the_light_segmenter_does(datamodule: WSSSDataModule, tmp_path: Path):
    task = task_on(datamodule, **OPTIONS)
    fit(task, datamodule, tmp_path, PseudoMaskRefresh(every=1), epochs=1)
    found = predict(task, datamodule, tmp_path)
    assert set(found) == {f"prediction/{record.id}" for record in datamodule.records("val")}
    (batch,) = list(datamodule.val_dataloader())[:1]
    batch = datamodule.on_after_batch_transfer(batch, 0)
    expected = F.interpolate(
        task.network(batch["inputs"]["features"]).softmax(1), batch["pixels"].shape[-2:], mode="bilinear"
    ).argmax(1)
    assert torch.equal(found[f"prediction/{batch['id'][0]}"][0], expected[0].to(torch.uint8))


def test_layers_of_one_place_alone_are_refused():
    with pytest.raises(ConfigError, match="layers for uss and for wss"):
        make_task("LightDHRTask", features={"uss": ["keys"]})
    assert make_task("LightDHRTask").layers is None
    assert make_task("LightDHRTask", features={"uss": ["keys"], "wss": ["a"]}).taps is None  # the segmenter reads all
