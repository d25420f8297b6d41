"""The light segmenter: its loss on shares of classes, its predictions, and what restricts or mirrors them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.files import image_size
from dhr_lightning.data.sample import Batch, Geometry
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.segmenters.light.task import LightTask
from dhr_lightning.models.light import LightSegmenter
from dhr_lightning.ops.soft_labels import class_shares
from tests.pipeline_workspace import same_tensors
from tests.stored_samples import MASKS, features_of, fit, predict, put_masks, stored_module, task_on
from tests.task_samples import make_task, predicting, training_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have


def light_task(**options: Any) -> LightTask:
    """A task for background and four tags with decisive random weights on five channels, without a run."""
    task = make_task("LightTask", **options)
    task.network = LightSegmenter({"block1": 2, "keys": 3}, 5, width=8, blocks=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in task.network.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    task.network.set_statistics(torch.full((5,), 0.5), torch.full((5,), 2.0))
    return task.eval()


def whole(tags: list[list[float]], grid: tuple[int, int] = (3, 4)) -> Batch:
    """Whole images of eight pixels to a cell."""
    generator, (height, width) = torch.Generator().manual_seed(1), (grid[0] * 8, grid[1] * 8)
    geometry = Geometry((0, 0, width, height), (0, 0, width, height), (1.0, 1.0), False, (height, width))
    return Batch(
        id=[str(index) for index in range(len(tags))],
        pixels=torch.randint(0, 256, (len(tags), 3, height, width), dtype=torch.uint8, generator=generator),
        valid=torch.ones(len(tags), height, width, dtype=torch.bool),
        tags=torch.tensor(tags),
        geometry=[geometry] * len(tags),
        inputs={"features": torch.randn(len(tags), 5, *grid, generator=generator)},
    )


TAGS = [[1.0, 0, 1, 0], [0.0, 1, 0, 0]]


def test_the_loss_is_the_cross_entropy_over_the_labelled_area():
    """A cell that is labelled by half counts half as much as a whole one."""
    task, batch = light_task(), whole(TAGS)
    mask = torch.randint(0, 5, (2, 24, 32), generator=torch.Generator().manual_seed(2))
    mask[:, :6] = 255
    mask[0, :, 30:] = 255
    shares, weight = class_shares(mask, 5, grid=(6, 8))
    assert {0.0, 0.5, 1.0} <= set(weight.flatten().tolist())
    training = {**batch, "inputs": {**batch["inputs"], "masks": shares * weight[:, None]}}
    logits = task.network(batch["inputs"]["features"])
    each = -(shares * logits.log_softmax(1)).sum(1) * weight
    assert float(training_loss(task, training)) == pytest.approx(float(each.sum() / weight.sum()), rel=1e-5)


def test_masks_without_a_label_have_no_loss():
    task, batch = light_task(), whole(TAGS)
    loss = training_loss(task, {**batch, "inputs": {**batch["inputs"], "masks": torch.zeros(2, 5, 6, 8)}})
    assert float(loss) == 0
    loss.backward()
    assert all(one.grad is None or not one.grad.any() for one in task.network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_those_of_the_network_at_every_pixel(flip: bool):
    task, batch = light_task(flip=flip), whole(TAGS)
    features = batch["inputs"]["features"]
    expected = task.network(features).softmax(1)
    if flip:
        expected = (expected + task.network(features.flip(-1)).softmax(1).flip(-1)) / 2
    found = task.probability(batch)
    torch.testing.assert_close(found, F.interpolate(expected, (24, 32), mode="bilinear", align_corners=False))
    torch.testing.assert_close(found.sum(1), torch.ones(2, 24, 32))


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_computed_in_full_precision_whatever_the_training_is(flip: bool):
    task, batch = light_task(flip=flip), whole(TAGS)
    batch["inputs"]["features"] = batch["inputs"]["features"].half()
    exact = task.probability(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task(batch["inputs"]["features"]).dtype == torch.bfloat16
        found = task.probability(batch)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


@torch.no_grad()
@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_features_have_mirrored_probabilities_with_flip(flip: bool):
    task, batch = light_task(flip=flip), whole(TAGS)
    mirrored = {**batch, "inputs": {"features": batch["inputs"]["features"].flip(-1)}}
    one, other = task.probability(batch), task.probability(mirrored).flip(-1)
    assert torch.allclose(one, other, atol=1e-6) == flip


@torch.no_grad()
def test_masks_of_training_images_show_their_tags_and_those_of_others_any_class():
    task, batch = light_task(), whole(TAGS)
    probability = task.probability(batch)
    allowed = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 0, 0]])[:, :, None, None]
    predicting(task, "train", "val")
    (train,), (val,) = task.predict_step(batch, 0, 0).items(), task.predict_step(batch, 0, 1).items()
    for (kind, masks), name, expected in (
        (train, "mask", (probability * allowed).argmax(1)),
        (val, "prediction", probability.argmax(1)),
    ):
        assert kind == name
        assert torch.equal(torch.stack([mask for (mask,) in masks]), expected.to(torch.uint8))
    assert set(probability.argmax(1)[1].unique().tolist()) - {0, 2}  # or nothing would be restricted


@torch.no_grad()
def test_the_crf_sees_the_photo_and_the_probabilities_that_tags_allow():
    task, batch, seen = light_task(test_crf={"iterations": 1}), whole(TAGS), {}

    def refine(image: Tensor, score: Tensor, present: Tensor, *, valid: Tensor) -> Tensor:
        seen.update(image=image, score=score, valid=valid)
        return score

    task.inference.refiner = refine
    predicting(task, "train")
    task.predict_step(batch, 0)
    assert seen["image"] is batch["pixels"]
    assert seen["valid"] is batch["valid"]
    assert not seen["score"][1, [1, 3, 4]].any()
    assert light_task().inference.refiner is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": {"widht": 8}}, r"Unknown head\.widht\. Known: width, blocks, upsample, dropout"),
        ({"mirror": 2.0}, r"flip in \[0, 1\]"),
        ({"crop_cells": 0}, "cells >= 1"),
        ({"test_crf": {"iteration": 1}}, "Unknown key 'iteration' in test_crf"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(options: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        make_task("LightTask", **options)


def test_crops_and_labels_follow_the_settings():
    task = make_task("LightTask", crop_cells=5, mirror=0.25, head={"upsample": 4})
    assert (task.grid_crop.cells, task.grid_crop.flip, task.grid_crop.label_scale) == (5, 0.25, 4)
    default = make_task("LightTask", head={})
    assert default.head_settings == {"width": 192, "blocks": 2, "upsample": 2, "dropout": 0.0}
    assert default.grid_crop.label_scale == 2
    settings = make_task("LightTask", gate=True, flip=True).inference.settings
    assert (settings.gate, settings.flip, settings.scales) == (True, True, (1.0,))
    assert (make_task("LightTask").inference.settings.gate, make_task("LightTask").inference.settings.flip) == (0, 0)


def test_the_network_is_that_of_the_settings(tiny_voc: Path, tmp_path: Path):
    datamodule = stored_module(tiny_voc, tmp_path, "light", inputs={"masks": MASKS})
    put_masks(datamodule)
    task = task_on(datamodule, head={"width": 8, "blocks": 3, "upsample": 4, "dropout": 0.25})
    fit(task, datamodule, tmp_path, epochs=1)
    network = task.network
    assert (network.classifier.in_channels, len(network.blocks)) == (8, 3)
    assert (network.upsample, network.dropout.p) == (4, 0.25)


def test_the_truth_in_place_of_masks_trains_as_equal_masks_do(tiny_voc: Path, tmp_path: Path):
    found = []
    for masks, folder in ((MASKS, tmp_path / "masks"), ("truth", tmp_path / "truth")):
        datamodule = stored_module(tiny_voc, folder, "light", inputs={"masks": masks})
        if masks != "truth":
            put_masks(datamodule)
        task = task_on(datamodule)
        fit(task, datamodule, folder, epochs=1)
        found.append(task.state_dict())
    assert same_tensors(*found)


def test_validation_counts_predictions_of_images_with_truth(tiny_voc: Path, tmp_path: Path):
    datamodule = stored_module(tiny_voc, tmp_path, "light", inputs={"masks": MASKS})
    put_masks(datamodule)
    task = task_on(datamodule)
    metrics = fit(task, datamodule, tmp_path, epochs=2).callback_metrics
    assert 0 <= float(metrics["val/miou"]) <= 1
    assert {name for name in metrics if name.startswith("val/iou/")} >= {
        "val/iou/background", "val/iou/cat", "val/iou/car", "val/iou/dog"
    }  # fmt: skip
    assert "val/iou/sheep" not in metrics or not metrics["val/iou/sheep"]


@torch.no_grad()
def test_whole_images_are_predicted_from_their_own_features(tiny_voc: Path, tmp_path: Path):
    """Nothing is padded: cells lie evenly over an image of any size."""
    datamodule = stored_module(tiny_voc, tmp_path, "light", inputs={"masks": MASKS})
    put_masks(datamodule)
    task = task_on(datamodule, lr=1.0)
    fit(task, datamodule, tmp_path, epochs=8)
    found = predict(task, datamodule, tmp_path)
    for record in datamodule.records("val"):
        logits = task.network(torch.from_numpy(features_of(record)).float()[None])
        expected = F.interpolate(logits.softmax(1), image_size(record.image), mode="bilinear", align_corners=False)
        assert len(expected[0].argmax(0).unique()) > 1
        assert torch.equal(found[f"prediction/{record.id}"][0], expected[0].argmax(0).to(torch.uint8))


@torch.no_grad()
def test_scores_are_those_of_one_epoch_and_images_without_truth_have_none():
    task, batch, logged = light_task(), whole(TAGS), {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged == {}
    truth = task.probability(batch).argmax(1)
    for wrong in (5, 0):
        changed = truth.clone()
        changed[:, :wrong] = 255 if wrong == 0 else (changed[:, :wrong] + 1) % 5
        task.test_step({**batch, "gt_mask": changed}, 0)
        logged.clear()
        task.on_test_epoch_end()
        assert (logged["val/miou"] == 1) == (wrong == 0)
    shown = {f"val/iou/{task.classes.names[value]}" for value in truth.unique().tolist()}
    assert set(logged) == {"val/miou", *shown}
