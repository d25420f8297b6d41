"""Masks from CAMs: a background score, confident labels, and which settings make sense."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.propagation.task import PropagationTask
from dhr_lightning.ops.crf.dense import CRFSettings
from tests.task_samples import NAMES, make_batch, make_task

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


def pixels_of(cam: Tensor, batch: Batch) -> Tensor:
    """CAMs over the whole canvas, at its pixels."""
    return F.interpolate(cam, batch["pixels"].shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("refine", ["none", "lattice", "pamr"])
@torch.no_grad()
def test_masks_have_the_size_and_classes_of_each_image(refine: str):
    result = make_task("PropagationTask", refine=refine).predict_step(make_batch(TAGS, SIZES), 0)
    assert set(result) == {"mask"}
    for tags, size, (mask,) in zip(TAGS, SIZES, result["mask"], strict=True):
        assert mask.shape == size
        assert mask.dtype == torch.uint8
        assert set(mask.unique().tolist()) <= {0, *tags}


@torch.no_grad()
def test_without_background_every_pixel_is_a_tagged_class():
    task = make_task("PropagationTask", class_names=NAMES[1:], has_background=False)
    tags = [[0, 2], [1]]
    result = task.predict_step(make_batch(tags, SIZES[:2], offset=0), 0)
    for (mask,), values in zip(result["mask"], tags, strict=True):
        assert set(mask.unique().tolist()) <= set(values)
    assert result["mask"][1][0].unique().tolist() == [1]


@torch.no_grad()
def test_a_strong_map_beats_the_background_and_a_weak_one_does_not():
    task = make_task("PropagationTask", background=0.3, refine="none")
    batch = make_batch([[3]], [(16, 16)])
    cam = torch.full((1, 1, 4, 4), 0.1)
    cam[..., 2:] = 0.9
    mask = task.masks(batch, pixels_of(cam, batch))[0]
    assert mask[:, :6].unique().tolist() == [0]
    assert mask[:, 10:].unique().tolist() == [3]


def test_confident_labels_leave_unsure_pixels_out():
    task = make_task("PropagationTask", confident={"foreground": 0.5, "background": 0.2}, refine="none")
    batch = make_batch([[3]], [(16, 24)])
    cam = torch.full((1, 1, 8, 8), 0.1)
    cam[..., 2:4], cam[..., 4:] = 0.35, 0.9
    mask = task.masks(batch, pixels_of(cam, batch))[0]
    assert [mask[:16, column].unique().tolist() for column in (2, 11, 20)] == [[0], [255], [3]]
    assert mask[:, 24:].unique().tolist() == [255]


@pytest.mark.parametrize("confident", [None, {}, {"foreground": 0.2}])
def test_the_default_kernels_are_those_of_the_kind_of_labels(confident: dict[str, float] | None):
    task = make_task("PropagationTask", confident=confident, crf=None)
    assert task.refiner.settings == (CRFSettings() if confident is None else CRFSettings(3, 3, 50, 5, 10, 10))
    own = make_task("PropagationTask", confident=confident, crf={"bilateral_sxy": 20.0}).refiner.settings
    assert own == replace(task.refiner.settings, bilateral_sxy=20.0)


@torch.no_grad()
def test_predicted_confident_masks_hold_tags_background_and_ignore():
    task = make_task("PropagationTask", confident={}, refine="lattice")
    masks = task.predict_step(make_batch(TAGS, SIZES), 0)["mask"]
    for tags, size, (mask,) in zip(TAGS, SIZES, masks, strict=True):
        assert mask.shape == size
        assert set(mask.unique().tolist()) <= {0, 255, *tags}


@pytest.mark.parametrize(
    ("confident", "message"),
    [
        ({"foreground": 0.1, "background": 0.4}, "background <= foreground"),
        ({"forground": 0.3}, r"confident is \{'forground': 0\.3\}: .*forground"),
    ],
)
def test_unusable_confident_thresholds_are_refused(confident: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        make_task("PropagationTask", confident=confident)


def test_confident_labels_need_a_background():
    with pytest.raises(ConfigError, match="confident needs a background class"):
        make_task("PropagationTask", class_names=NAMES[1:], has_background=False, confident={})


@torch.no_grad()
def test_automatic_background_separates_two_heaps_of_activations():
    task = make_task("PropagationTask", background="auto", refine="none")
    batch = make_batch([[3]], [(16, 16)])
    cam = torch.full((1, 1, 4, 4), 0.5)
    cam[..., 2:] = 0.9
    mask = task.masks(batch, pixels_of(cam, batch))[0]
    assert mask[:, :6].unique().tolist() == [0]
    assert mask[:, 10:].unique().tolist() == [3]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, "otsu"])
def test_a_background_score_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match="background"):
        make_task("PropagationTask", background=value)


def test_nothing_is_fitted():
    task = make_task("PropagationTask")
    assert list(task.parameters()) == []
    assert task.state_dict() == {}
    assert not PropagationTask.spec.fits


def test_images_of_the_choice_are_spread_over_the_list():
    assert subsample_evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert subsample_evenly([1, 2], 4) == [1, 2]
