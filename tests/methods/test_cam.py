from dataclasses import replace

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.data.catalog import subsample_evenly
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.crf.dense import CRFSettings
from dhr_lightning.reporting.kinds import find_kinds
from tests.pipeline_workspace import Workspace
from tests.task_samples import NAMES, make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]

TAGS = [[1, 3], [2], [1, 2, 4]]
SIZES = [(48, 64), (64, 40), (32, 32)]


@torch.no_grad()
def test_predictions_have_the_size_and_classes_of_each_image():
    result = make_task("CAMTask").predict_step(make_batch(TAGS, SIZES), 0)
    assert set(result) == {"cam", "base_mask"}
    for tags, (height, width), (keys, cam), (mask,) in zip(
        TAGS, SIZES, result["cam"], result["base_mask"], strict=True
    ):
        assert keys.tolist() == tags
        assert cam.shape == (len(tags), height // 4, width // 4)
        assert 0 <= float(cam.min()) <= float(cam.max()) <= 1
        assert mask.shape == (height, width)
        assert set(mask.unique().tolist()) <= {0, *tags}


@torch.no_grad()
def test_without_background_every_pixel_is_a_tagged_class():
    task = make_task("CAMTask", class_names=NAMES[1:], has_background=False)
    tags = [[0, 2], [1]]
    result = task.predict_step(make_batch(tags, SIZES[:2], offset=0), 0)
    for (mask,), values in zip(result["base_mask"], tags, strict=True):
        assert set(mask.unique().tolist()) <= set(values)
    assert result["base_mask"][1][0].unique().tolist() == [1]


@torch.no_grad()
def test_a_strong_map_beats_the_background_and_a_weak_one_does_not():
    task = make_task("CAMTask", background=0.3, refine="none")
    batch = make_batch([[3]], [(16, 16)])
    classes = task.tagged(batch)
    cam = torch.full((1, 1, 4, 4), 0.1)
    cam[..., 2:] = 0.9
    mask = task.base_masks(batch, cam, classes)[0]
    assert mask[:, :6].unique().tolist() == [0]
    assert mask[:, 10:].unique().tolist() == [3]


class Brightness(torch.nn.Module):
    """A network whose map of every class is the mean brightness of its cell."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4).expand(-1, 4, -1, -1)


@torch.no_grad()
def test_a_cam_reaches_one_inside_the_image_whatever_the_padding_shows():
    task, batch = make_task("CAMTask", refine="none"), make_batch([[1], [2]], [(32, 32), (32, 16)])
    task.network = Brightness()
    batch["image"] = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = task.predict_step(batch, 0)
    batch["image"][~batch["valid"][:, None].expand(-1, 3, -1, -1)] = 100.0
    result = task.predict_step(batch, 0)
    for index in (0, 1):
        assert float(result["cam"][index][1].max()) == pytest.approx(1)
    assert result["cam"][1][1].shape == (1, 8, 4)
    torch.testing.assert_close(result["cam"][0][1], expected["cam"][0][1])


@pytest.mark.parametrize(("dilation", "expected"), [(False, {(1, 1)}), (True, {(1, 1), (2, 2)})])
def test_dilation_is_that_of_the_encoder(dilation: bool, expected: set[tuple[int, int]]):
    task = make_task("CAMTask", backbone="resnet18", output_stride=16, dilation=dilation)
    assert {m.dilation for m in task.network.encoder.modules() if isinstance(m, torch.nn.Conv2d)} == expected


def test_confident_labels_leave_unsure_pixels_out():
    task = make_task("CAMTask", confident={"foreground": 0.5, "background": 0.2}, refine="none")
    batch = make_batch([[3]], [(16, 24)])
    classes = task.tagged(batch)
    cam = torch.full((1, 1, 8, 8), 0.1)
    cam[..., 2:4], cam[..., 4:] = 0.35, 0.9
    mask = task.base_masks(batch, cam, classes)[0]
    assert [mask[:16, column].unique().tolist() for column in (2, 11, 20)] == [[0], [255], [3]]
    assert mask[:, 24:].unique().tolist() == [255]


@pytest.mark.parametrize("confident", [None, {}, {"foreground": 0.2}])
def test_the_default_kernels_are_those_of_the_kind_of_labels(confident: dict[str, float] | None):
    task = make_task("CAMTask", confident=confident, crf=None)
    assert task.refiner.settings == (CRFSettings() if confident is None else CRFSettings(3, 3, 50, 5, 10, 10))
    own = make_task("CAMTask", confident=confident, crf={"bilateral_sxy": 20.0}).refiner.settings
    assert own == replace(task.refiner.settings, bilateral_sxy=20.0)


@torch.no_grad()
def test_predicted_confident_masks_hold_tags_background_and_ignore():
    task = make_task("CAMTask", confident={}, refine="lattice")
    masks = task.predict_step(make_batch(TAGS, SIZES), 0)["base_mask"]
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
        make_task("CAMTask", confident=confident)


def test_confident_labels_need_a_background():
    with pytest.raises(ConfigError, match="confident needs a background class"):
        make_task("CAMTask", class_names=NAMES[1:], has_background=False, confident={})


def test_artifacts_on_disk_hold_tagged_classes_only(workspace: Workspace):
    for record in read_records("microworld", workspace.data, "train"):
        keys, cam = read_cam(workspace.store.path("cam", "train", record.id))
        assert tuple(keys.tolist()) == record.tags
        assert cam.shape == (len(record.tags), 32, 32)
        for kind in ("base_mask", "mars_mask", "wss_mask", "dhr_mask/round_00", "dhr_mask/round_01"):
            mask = read_mask(workspace.store.path(kind, "train", record.id))
            assert mask.shape == (128, 128)
            assert set(np.unique(mask).tolist()) <= {0, *record.tags}


@torch.no_grad()
def test_automatic_background_separates_two_heaps_of_activations():
    task = make_task("CAMTask", background="auto", refine="none")
    batch = make_batch([[3]], [(16, 16)])
    classes = task.tagged(batch)
    cam = torch.full((1, 1, 4, 4), 0.5)
    cam[..., 2:] = 0.9
    mask = task.base_masks(batch, cam, classes)[0]
    assert mask[:, :6].unique().tolist() == [0]
    assert mask[:, 10:].unique().tolist() == [3]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, "otsu"])
def test_a_background_score_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match="background"):
        make_task("CAMTask", background=value)


def test_the_chosen_background_is_recorded_and_used_by_the_report(workspace: Workspace):
    for kind in ("cam", "base_mask"):
        info = workspace.store.manifest(kind, "train").info
        assert 0 < info["background"] < 1
        assert info["background_rule"].startswith("Otsu")
    records = read_records("microworld", workspace.data, "train")
    kinds, _ = find_kinds(workspace.store, {"train": [record.id for record in records]}, splits=["train"])
    assert kinds[0].is_cam
    assert kinds[0].threshold == workspace.store.manifest("cam", "train").info["background"]


@pytest.mark.filterwarnings("ignore:No positive samples found in target:UserWarning")  # as the command line does
def test_an_image_without_tags_counts_against_every_class_in_the_validation():
    task, logged = make_task("CAMTask"), {}
    task.log = lambda name, value, **options: logged.update({name: float(value)})
    batch = make_batch([[1], [], [2]], [(32, 32)] * 3)
    score = torch.tensor([[3.0, 0, 3, 3], [4.0, -1, 3, 3], [0.0, 1, 3, 3]])  # the second image is taken for class 1

    class Fixed(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return score[: len(image), :, None, None].expand(-1, -1, 4, 4)

    task.network = Fixed()
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert logged["val/tag_map"] == pytest.approx((1 / 2 + 1) / 2)  # classes that no image shows are left out

    logged.clear()
    task.validation_step(make_batch([[], []], [(32, 32)] * 2), 0)
    task.on_validation_epoch_end()
    assert "val/tag_map" not in logged


def test_images_of_the_choice_are_spread_over_the_list():
    assert subsample_evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert subsample_evenly([1, 2], 4) == [1, 2]
