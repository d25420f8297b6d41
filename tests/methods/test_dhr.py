from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.masks.dhr.task import DHRTask
from tests.task_samples import NAMES, favour, make_batch, make_task, pick, training_loss

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_new_masks_hold_the_tags_and_the_background_only(refine: str):
    batch = make_batch(TAGS, SIZES)
    result = make_task("DHRTask", refine=refine).pseudo_masks(batch)
    assert result.mask.shape == batch["inputs"]["masks"].shape
    for mask, valid, tags in zip(result.mask, batch["valid"], TAGS, strict=True):
        assert set(mask[valid].unique().tolist()) <= {0, *tags}
        assert set(mask[~valid].tolist()) <= {255}


def test_a_class_that_vanished_from_the_mask_comes_back():
    batch = make_batch([[1, 2]], [(64, 64)])
    batch["inputs"]["masks"][batch["inputs"]["masks"] == 2] = 0
    result = make_task("DHRTask", refine="none", rebalance={"uss": False}).pseudo_masks(batch)
    assert result.recovered[0].tolist() == [False, False, True]
    assert 2 in result.mask.unique().tolist()


def test_without_background_every_pixel_is_a_tagged_class():
    task = make_task("DHRTask", class_names=NAMES[1:], has_background=False, refine="none")
    batch = make_batch([[0, 2], [1]], [(48, 48), (32, 48)], offset=0)
    result = task.pseudo_masks(batch)
    assert set(result.mask[0].unique().tolist()) <= {0, 2}
    assert set(result.mask[1][batch["valid"][1]].unique().tolist()) == {1}


@pytest.mark.parametrize("rebalance", [{"uss": False}, {"wss": False}, {"seed": "all"}, {"tau": 0.0}])
def test_switches_are_handed_on(rebalance: dict[str, object]):
    task = make_task("DHRTask", refine="none", rebalance=rebalance)
    batch = make_batch(TAGS, SIZES)
    if rebalance == {"uss": False}:
        del batch["inputs"]["features"]
    result = task.pseudo_masks(batch)
    if rebalance == {"uss": False}:
        assert torch.equal(result.mask[batch["valid"]], result.init[batch["valid"]])
    if rebalance == {"wss": False}:
        assert not result.groups.any()
    if rebalance == {"tau": 0.0}:
        assert result.groups.any()


def test_masks_do_not_depend_on_the_other_images_of_the_batch():
    task, together = make_task("DHRTask", refine="none"), make_batch([[1, 2], [1, 3]], [(48, 48), (48, 48)])
    masks = task.pseudo_masks(together).mask
    for index in range(2):
        alone = pick(together, [index])
        alone_mask = task.pseudo_masks(alone).mask[0]
        assert float((alone_mask == masks[index]).float().mean()) > 0.999


def test_masks_do_not_depend_on_what_fills_the_rest_of_the_canvas():
    """Images of several sizes on one canvas, then each alone on a canvas of the same size."""
    sizes, tags = [(64, 48), (40, 64), (56, 56)], [[1, 2], [3], [1, 4]]
    task = make_task("DHRTask", refine="none")
    together = make_batch(tags, sizes)
    masks = task.pseudo_masks(together).mask
    for index, (height, width) in enumerate(sizes):
        alone = pick(together, [index])
        found = task.pseudo_masks(alone).mask[0]
        assert found.shape == (64, 64)
        assert float((found == masks[index]).float().mean()) > 0.999
        assert (masks[index][:height, :width] != 255).all()
        assert (masks[index][~together["valid"][index]] == 255).all()


class Cells(nn.Module):
    """Stands for an encoder: every feature is the mean colour of a cell, so that no cell sees its neighbours."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, image, image, image, F.avg_pool2d(image, 8), F.avg_pool2d(image, 8)]


@pytest.mark.parametrize("view", ["default", "paper"])
def test_the_largest_activation_is_sought_in_the_image_and_not_in_its_padding(view: str):
    task = make_task("DHRTask", refine="none", seed_view=view, rebalance={"uss": False, "seed": "all"})
    task.network.encoder, task.network.classifier = Cells(), nn.Conv2d(3, 4, 1, bias=False)
    nn.init.uniform_(task.network.classifier.weight, 0, 1)
    batch = make_batch([[1, 2], [3]], [(64, 64), (32, 32)])
    before = task.pseudo_masks(batch).mask
    assert 3 in before[1].unique()
    batch["image"][1][:, ~batch["valid"][1]] = 50.0
    batch["image"][1][:, :, 32:48] = 0  # beside the image, where the grids of the maps may overlap it
    batch["image"][1][:, 32:48] = 0
    assert torch.equal(task.pseudo_masks(batch).mask, before)


def disturb(task: DHRTask, level: int) -> None:
    """Replace one feature map of the encoder by noise."""

    def replaced(_: nn.Module, __: Any, features: list[Tensor]) -> list[Tensor]:
        noise = torch.rand(features[level].shape, generator=torch.Generator().manual_seed(0))
        return [noise if index == level % len(features) else f for index, f in enumerate(features)]

    task.network.encoder.register_forward_hook(replaced)


@pytest.mark.parametrize(("level", "matters"), [(-3, False), (-2, True), (-1, True)])
@pytest.mark.parametrize("features", ["uss", "both"])
def test_the_last_two_feature_maps_redraw_the_masks_and_no_other(level: int, matters: bool, features: str):
    rebalance = {"seed": "none", "features": features, "tau": 0.0}  # without seeds the CAM has no part in it
    task, batch = make_task("DHRTask", refine="none", rebalance=rebalance), make_batch(TAGS, SIZES)
    before = task.pseudo_masks(batch).heatmaps
    disturb(task, level)
    assert torch.equal(task.pseudo_masks(batch).heatmaps, before) != matters


def seen_cam(task: DHRTask, batch: Batch) -> tuple[Tensor, int]:
    """The CAM that the mask step gets, and how often the encoder ran."""
    encoded: list[Any] = []
    handle = task.network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    cam = task.mask_inputs(batch).cam
    handle.remove()
    return cam, len(encoded)


@torch.no_grad()
def test_the_paper_seeds_from_one_view_at_stride_16(monkeypatch: pytest.MonkeyPatch):
    task, batch = make_task("DHRTask", seed_view="paper", cam_scales=(1.0, 1.5)), make_batch([[1, 3]], [(64, 96)])
    cam, views = seen_cam(task, batch)
    last = task.network.encoder(batch["image"])[-1]
    halved = F.interpolate(last, (4, 6), mode="bilinear", align_corners=True)
    raw = F.conv2d(halved, task.network.classifier.weight).relu()[:, [0, 2]]
    expected = raw / raw.amax((2, 3), keepdim=True)
    assert views == 1
    torch.testing.assert_close(cam[:, 1:] if cam.shape[1] == 3 else cam, expected)


@torch.no_grad()
def test_the_default_seeds_from_several_views_on_a_finer_grid(monkeypatch: pytest.MonkeyPatch):
    task, batch = make_task("DHRTask", cam_scales=(1.0, 1.5)), make_batch([[1, 3]], [(64, 96)])
    cam, views = seen_cam(task, batch)
    assert views == 4
    assert cam.shape[-2:] == (16, 24)
    with pytest.raises(ConfigError, match="seed_view to be default or paper, but got 'published'"):
        make_task("DHRTask", seed_view="published")


@pytest.mark.parametrize("size", ["decoder", "full"])
def test_training_reaches_every_part_through_its_own_loss(size: str):
    batch = make_batch([[1], [2]], [(32, 32), (32, 32)])
    reached = {}
    for case, unlabelled, weight in (("both", False, 1.0), ("masks", False, 0.0), ("tags", True, 1.0)):
        task, labelled = make_task("DHRTask", loss_size=size, weight_cls=weight), batch["inputs"]["masks"].clone()
        if unlabelled:
            labelled.fill_(255)
        training_loss(task, Batch(**{**batch, "inputs": {**batch["inputs"], "masks": labelled}})).backward()
        reached[case] = {name.split(".")[1] for name, p in task.named_parameters() if p.grad.any()}
        if case == "both":
            assert all(p.grad.any() for p in task.parameters())
    assert reached["both"] == {"encoder", "decoder", "head", "classifier"}
    assert reached["masks"] == {"encoder", "decoder", "head"}
    assert reached["tags"] == {"encoder", "classifier"}


@torch.no_grad()
def test_predictions_ignore_the_tags():
    task, batch = make_task("DHRTask"), make_batch([[1], [2]], [(32, 48), (32, 32)])
    batch["tags"].zero_()
    favour(task, 4)
    ((first,), (second,)) = task.predict_step(batch, 0)["prediction"]
    assert first.shape == (32, 48)
    assert second.shape == (32, 32)
    assert first.unique().tolist() == second.unique().tolist() == [4]


def test_the_loss_adds_segmentation_and_classification(monkeypatch: pytest.MonkeyPatch):
    batch, logged = make_batch([[1], [2]], [(32, 32), (32, 32)]), {}
    for weight in (0.0, 2.0):
        task = make_task("DHRTask", weight_cls=weight)
        monkeypatch.setattr(task, "log_dict", lambda values, **options: logged.update(values))
        loss = task.training_step(batch, 0)
        expected = logged["train/loss_seg"] + weight * logged["train/loss_cls"]
        assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
