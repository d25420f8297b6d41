"""The tag head: its loss, its CAMs on the grid of the features, and the background that it learns at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.seeds.tag_head import task as tag_head
from dhr_lightning.methods.seeds.tag_head.task import TagHeadTask
from dhr_lightning.models.tag_head import TagHead
from dhr_lightning.ops.learnt_background import ConfidentCells, fit_background
from dhr_lightning.ops.tag_pooling import pool_tags, tag_pooling
from tests.stored_samples import features_of, fit, last, predict, same_outputs, stored_module, task_on, trainer
from tests.task_samples import NAMES, make_task, training_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
GRIDS = {"2007_000001": (6, 8), "2007_000002": (8, 6), "2007_000003": (7, 5), "2007_000004": (8, 8)}


def head_task(**options: Any) -> TagHeadTask:
    """A task for four tags with a head of random weights on five channels, without a run; nothing is smoothed."""
    task = make_task("TagHeadTask", **{"smooth": 0, "present_share": 0, **options})
    task.network = TagHead(5, 4)
    torch.nn.init.normal_(task.network.classifier.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(task.network.classifier.bias, 0.3)
    task.network.set_statistics(torch.full((5,), 0.5), torch.full((5,), 2.0))
    weight = torch.tensor([0.5, -1.0, 0.3, 0.2, -0.4])
    task.register_buffer("background_weight", torch.stack([weight, -weight, weight.flip(0), 2 * weight]))
    task.register_buffer("background_bias", torch.tensor([0.1, 0.2, -0.1, 0.0]))
    return task


def batch_of(tags: list[list[float]], grid: tuple[int, int] = (3, 4)) -> dict[str, Any]:
    features = torch.randn(len(tags), 5, *grid, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(len(tags), *grid, dtype=torch.bool)
    inputs = {"features": features.half()}
    return {"id": [str(i) for i in range(len(tags))], "tags": torch.tensor(tags), "inputs": inputs, "valid": valid}


TAGS = [[1.0, 0, 1, 0], [0.0, 1, 0, 0]]


@pytest.mark.parametrize("pooling", [None, {"name": "mean"}, {"name": "topk", "share": 0.5}, {"sharpness": 5}])
def test_the_loss_is_that_of_the_pooled_maps_of_valid_cells(pooling: dict[str, Any] | None):
    task, batch = head_task(pooling=pooling), batch_of(TAGS)
    batch["valid"][1, :, 2:] = False
    found = training_loss(task, batch)
    features = (batch["inputs"]["features"].float() - 0.5) / 2
    maps = F.conv2d(features, task.network.classifier.weight, task.network.classifier.bias)
    expected_pooling = tag_pooling(**{"name": "logsumexp", **(pooling or {})})
    pooled = [pool_tags(maps[:1], None, expected_pooling), pool_tags(maps[1:, :, :, :2], None, expected_pooling)]
    assert float(found) == pytest.approx(
        float(F.multilabel_soft_margin_loss(torch.cat(pooled), batch["tags"])), rel=1e-5
    )
    batch["inputs"]["features"][1, :, :, 2:] = 9
    assert float(training_loss(task, batch)) == pytest.approx(float(found), rel=1e-6)


@torch.no_grad()
def test_cams_are_the_tagged_maps_rectified_and_scaled_by_their_maximum():
    task, batch = head_task(background="scores"), batch_of(TAGS)
    found = task.predict_step(batch, 0)["cam"]
    raw = task.network(batch["inputs"]["features"].float()).relu()
    for index, ((keys, maps), values) in enumerate(zip(found, ([1, 3], [2]), strict=True)):
        assert keys.tolist() == values
        expected = torch.stack([raw[index, value - 1] / raw[index, value - 1].max() for value in values])
        torch.testing.assert_close(maps, expected)
        assert float(maps.max()) == 1
        assert float(maps.min()) >= 0


@torch.no_grad()
@pytest.mark.parametrize("background", ["scores", "learnt"])
def test_an_image_without_a_tag_has_no_map(background: str):
    ((keys, maps),) = head_task(background=background).predict_step(batch_of([[0.0] * 4]), 0)["cam"]
    assert keys.shape == (0,)
    assert maps.shape == (0, 3, 4)


@torch.no_grad()
def test_a_learnt_background_says_where_and_the_maps_say_which():
    batch = batch_of(TAGS)
    plain, learnt = head_task(background="scores"), head_task(background="learnt")
    features = (batch["inputs"]["features"].float() - 0.5) / 2
    weight, bias = learnt.background_weight, learnt.background_bias
    for index, ((keys, cam), (_, maps)) in enumerate(
        zip(learnt.predict_step(batch, 0)["cam"], plain.predict_step(batch, 0)["cam"], strict=True)
    ):
        own = torch.einsum("dhw,kd->khw", features[index], weight[keys - 1]) + bias[keys - 1, None, None]
        torch.testing.assert_close(cam, own.sigmoid() * maps / maps.amax(0).clamp_min(1e-5))


@torch.no_grad()
@pytest.mark.parametrize("background", ["scores", "learnt"])
def test_mirrored_features_have_mirrored_cams(background: str):
    task, batch = head_task(background=background), batch_of(TAGS)
    mirrored = {**batch, "inputs": {"features": batch["inputs"]["features"].flip(-1)}}
    for (_, one), (_, other) in zip(
        task.predict_step(batch, 0)["cam"], task.predict_step(mirrored, 0)["cam"], strict=True
    ):
        torch.testing.assert_close(one, other.flip(-1))


def test_validation_ranks_the_images_of_an_epoch_and_leaves_out_classes_that_none_shows():
    """In the first epoch an image comes first with its tag of the first class, and second with that of the second."""
    task, logged = head_task(), {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    maps = torch.tensor([[2.0, 1.0, 5.0, 5.0], [1.0, 2.0, 5.0, 5.0]])[..., None, None].expand(-1, -1, 3, 4)
    task.network = torch.nn.Module()
    task.network.forward = lambda features: maps
    for step, end, tags, expected in (
        (task.validation_step, task.on_validation_epoch_end, [[1.0, 1, 0, 0], [0.0, 0, 0, 0]], 0.75),
        (task.test_step, task.on_test_epoch_end, [[1.0, 0, 0, 0], [0.0, 1, 0, 0]], 1.0),
    ):
        logged.clear()
        batch = batch_of(tags)
        step(batch, 0)
        end()
        assert logged["val/tag_map"] == pytest.approx(expected)
        loss = F.multilabel_soft_margin_loss(maps[..., 0, 0], batch["tags"])
        assert logged["val/loss_cls"] == pytest.approx(float(loss), rel=1e-5)


def test_validation_without_any_tag_has_no_precision():
    task, logged = head_task(), {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.validation_step(batch_of([[0.0] * 4, [0.0] * 4]), 0)
    task.on_validation_epoch_end()
    assert set(logged) == {"val/loss_cls"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": "otsu"}, "background to be scores or learnt, but got 'otsu'"),
        ({"pooling": {"name": "median"}}, "median"),
        ({"pooling": {"sharp": 1}}, r"Unknown pooling\.sharp"),
        ({"background_cells": {"hihg": 0.7}}, "hihg"),
        ({"background_cells": {"low": 0.9}}, "low <= high"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        make_task("TagHeadTask", **options)


def test_limits_of_sure_cells_are_those_of_the_setting():
    assert make_task("TagHeadTask").cells == {"high": 0.7, "low": 0.15}
    assert make_task("TagHeadTask", background_cells={"high": 0.5}).cells == {"high": 0.5, "low": 0.15}


def independent_background(
    task: BaseTask, datamodule: WSSSDataModule, *, smooth: int = 2, l2: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The background as fitted to CAMs of one image after the other."""
    cells = ConfidentCells(task.classes.num_tags, low=0.15, high=0.7)
    for record in datamodule.records("train"):
        features = (torch.from_numpy(features_of(record)).float() - task.network.mean[:, None, None])[None]
        features = features / task.network.std[:, None, None]
        maps = F.conv2d(features, task.network.classifier.weight, task.network.classifier.bias)
        for _ in range(smooth):
            maps = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        maps = maps[:, [tag - 1 for tag in record.tags]].relu()
        keys = torch.tensor([[tag - 1 for tag in record.tags]])
        cells.update(features, maps / maps.amax((2, 3), keepdim=True).clamp_min(1e-5), keys, [record.id])
    return fit_background(cells, l2=l2)


@pytest.mark.parametrize("background", ["scores", "learnt"])
def test_the_background_is_fitted_once_to_the_finished_head_and_kept(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: str
):
    datamodule, fitted = stored_module(tiny_voc, tmp_path, "tag_head", inputs={}), []
    real = tag_head.fit_background
    task = task_on(datamodule, background=background, lr=30.0, present_share=0)

    def spy(cells: ConfidentCells, **options: float) -> tuple[Tensor, Tensor]:
        fitted.append((task.current_epoch, cells.images))
        return real(cells, **options)

    monkeypatch.setattr(tag_head, "fit_background", spy)
    fit(task, datamodule, tmp_path, epochs=3)
    kept = torch.load(last(tmp_path), weights_only=True)["state_dict"]
    assert fitted == ([(2, 4)] if background == "learnt" else [])
    if background == "scores":
        assert not kept["background_weight"].any()
        return
    with torch.no_grad():
        weight, bias = independent_background(task, datamodule)
    torch.testing.assert_close(kept["background_weight"], weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(kept["background_bias"], bias, atol=1e-4, rtol=1e-3)

    found = predict(task, datamodule, tmp_path)
    again = task_on(datamodule, background=background, present_share=0)
    again._trainer = task._trainer
    again.configure_model()
    again.load_state_dict(kept)
    assert same_outputs(predict(again, datamodule, tmp_path), found)
    for name, (keys, maps) in found.items():
        image_id = name.partition("/")[2]
        record = next(one for one in datamodule.records("train") if one.id == image_id)
        assert keys.tolist() == list(record.tags)
        assert maps.shape == (len(record.tags), *GRIDS[image_id])


def test_padding_beside_a_small_image_sets_no_maximum(tiny_voc: Path, tmp_path: Path):
    """A head for which the zeros of the padding are the surest cells of all."""
    datamodule = stored_module(tiny_voc, tmp_path, "tag_head", inputs={})
    task = task_on(datamodule)
    fit(task, datamodule, tmp_path, epochs=1)
    task.network.classifier.weight.data.fill_(-1.0)
    task.network.classifier.bias.data.fill_(1.0)
    task._fit_background()
    with torch.no_grad():
        weight, bias = independent_background(task, datamodule)
    torch.testing.assert_close(task.background_weight, weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(task.background_bias, bias, atol=1e-4, rtol=1e-3)


def test_some_images_of_every_class_are_asked_for_the_background(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    datamodule, seen, asked = stored_module(tiny_voc, tmp_path, "tag_head", inputs={}), [], []

    def choose(records: list[Record], count: int) -> list[Record]:
        asked.append(([record.id for record in records], count))
        return records[1:3]

    monkeypatch.setattr(tag_head, "images_of_each_class", choose)
    monkeypatch.setattr(ConfidentCells, "update", lambda self, features, cam, keys, images, **_: seen.extend(images))
    monkeypatch.setattr(tag_head, "fit_background", lambda cells, **_: (torch.zeros(20, 7), torch.zeros(20)))
    fit(task_on(datamodule, background="learnt"), datamodule, tmp_path, epochs=1)
    assert asked == [([record.id for record in datamodule.records("train")], 25)]
    assert seen == ["2007_000002", "2007_000003"]


def test_a_fit_that_its_steps_end_also_has_a_background(tiny_voc: Path, tmp_path: Path):
    datamodule = stored_module(tiny_voc, tmp_path, "tag_head", inputs={})
    task = task_on(datamodule, background="learnt", lr=30.0)
    run = trainer(tmp_path, epochs=50)
    run.fit_loop.epoch_loop.max_steps = 5  # of two in each epoch
    run.fit(task.train(), datamodule=datamodule)
    assert bool(task.background_weight.any())


def test_a_head_that_is_nowhere_sure_ends_with_advice(tiny_voc: Path, tmp_path: Path):
    datamodule = stored_module(tiny_voc, tmp_path, "tag_head", inputs={})
    task = task_on(datamodule, background="learnt", lr=1e-9, present_share=0)
    with pytest.raises(DataError, match=r"tag_head: .*foreground.*trainer\.max_epochs.*--tag_head\.background scores"):
        fit(task, datamodule, tmp_path, epochs=1)


def test_without_a_background_class_none_is_learnt():
    names = NAMES[1:]
    task = make_task("TagHeadTask", class_names=names, has_background=False, background="learnt")
    task.network = TagHead(5, 4)
    task.network.classifier.bias.data.fill_(1.0)
    task._trainer = None
    ((keys, maps), _) = task.predict_step(batch_of(TAGS), 0)["cam"]
    assert keys.tolist() == [0, 2]
    assert float(maps.amax()) == 1
