"""Class maps and learnt background of the tag head: smoothed, penalised, and in full precision under autocast."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.methods.seeds.tag_head import task as tag_head
from dhr_lightning.ops.learnt_background import ConfidentCells
from tests.methods.test_tag_head_steps import TAGS, batch_of, head_task, independent_background
from tests.stored_samples import fit, stored_module, task_on
from tests.task_samples import training_loss

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have


def means(maps: Tensor, times: int) -> Tensor:
    """3x3 means of `(C, h, w)` over the cells that there are."""
    for _ in range(times):
        maps = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return maps


@torch.no_grad()
@pytest.mark.parametrize("smooth", [0, 1, 3])
@pytest.mark.parametrize("background", ["scores", "learnt"])
def test_maps_are_smoothed_before_they_are_scaled_and_so_is_the_probability(smooth: int, background: str):
    task, batch = head_task(smooth=smooth, background=background), batch_of(TAGS, (5, 6))
    features = batch["inputs"]["features"].float()
    standard = (features - 0.5) / 2
    logits = torch.einsum("bdhw,td->bthw", standard, task.background_weight)
    probability = (logits + task.background_bias[:, None, None]).sigmoid()
    for index, (keys, found) in enumerate(task.predict_step(batch, 0)["cam"]):
        maps = means(task.network(features[index : index + 1])[0, keys - 1], smooth).relu()
        expected = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-5)
        if background == "learnt":
            expected = means(probability[index, keys - 1], smooth) * expected / expected.amax(0).clamp_min(1e-5)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_two_means_are_the_default():
    batch = batch_of(TAGS, (5, 6))
    (_, two), (_, chosen), (_, one) = (
        head_task(**{"smooth": smooth} if smooth else {}).predict_step(batch, 0)["cam"][0] for smooth in (2, 0, 1)
    )
    assert head_task().hparams.smooth == 0  # of these tests
    assert tag_head.TagHeadTask(class_names=["background", "cat", "dog"]).hparams.smooth == 2
    assert not torch.equal(two, one)
    assert not torch.equal(two, chosen)


@torch.no_grad()
@pytest.mark.parametrize("smooth", [0, 2])
def test_padding_of_a_batch_leaks_into_no_map(smooth: int):
    task, batch = head_task(smooth=smooth), batch_of(TAGS, (5, 6))
    features, valid = batch["inputs"]["features"], batch["valid"]
    valid[1, 3:], valid[1, :, 4:] = False, False
    alone = task._normalised(features[1:, :, :3, :4], task._classes(batch["tags"][1:]))
    for value in (0.0, 500.0, -500.0):
        features[1, :, 3:], features[1, :, :, 4:] = value, value
        found = task._normalised(features, task._classes(batch["tags"]), valid)
        torch.testing.assert_close(found[1:, :1, :3, :4], alone)
        assert not found[1][:, ~valid[1]].any()


@pytest.mark.parametrize("smooth", [0, 2])
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_the_background_is_fitted_to_smoothed_maps_with_its_penalty(
    tiny_voc: Path, tmp_path: Path, smooth: int, l2: float
):
    """On images of several grids in one batch, beside which there is padding."""
    datamodule = stored_module(tiny_voc, tmp_path, "tag_head", inputs={})
    task = task_on(datamodule, background="learnt", lr=30.0, smooth=smooth, background_l2=l2, present_share=0)
    fit(task, datamodule, tmp_path, epochs=2)
    with torch.no_grad():
        weight, bias = independent_background(task, datamodule, smooth=smooth, l2=l2)
        others = [
            independent_background(task, datamodule, smooth=2 - smooth, l2=l2)[0],
            independent_background(task, datamodule, smooth=smooth, l2=l2 * 10)[0],
        ]
    torch.testing.assert_close(task.background_weight, weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(task.background_bias, bias, atol=1e-4, rtol=1e-3)
    assert all(float((other - weight).abs().max()) > 1e-2 * float(weight.abs().max()) for other in others)


def test_a_penalty_of_one_is_the_default(tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datamodule, seen = stored_module(tiny_voc, tmp_path, "tag_head", inputs={}), []

    def spy(cells: ConfidentCells, *, l2: float) -> tuple[Tensor, Tensor]:
        seen.append(l2)
        return torch.zeros(20, 7), torch.zeros(20)

    monkeypatch.setattr(tag_head, "fit_background", spy)
    fit(task_on(datamodule, background="learnt"), datamodule, tmp_path, epochs=1)
    assert seen == [1.0]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"background": "learnt"}, {"background": "learnt", "smooth": 2}])
def test_cams_are_computed_in_full_precision_whatever_the_training_is(options: dict[str, Any]):
    task, batch = head_task(**options), batch_of(TAGS)
    exact = task.predict_step(batch, 0)["cam"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task(batch["inputs"]["features"]).dtype == torch.bfloat16
        for (keys, maps), (found_keys, found) in zip(exact, task.predict_step(batch, 0)["cam"], strict=True):
            assert torch.equal(keys, found_keys)
            assert found.dtype == torch.float32
            assert torch.equal(maps, found)


def test_the_loss_of_training_in_bfloat16_is_nearly_that_in_full_precision():
    task, batch = head_task(), batch_of(TAGS)
    exact = training_loss(task, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = training_loss(task, batch)
    assert found.dtype == torch.float32
    assert 0 < abs(float(found - exact)) < 0.05
