import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.data.catalog import spread
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.cam import compact_keys
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
    keys, present = compact_keys(batch["tags"], offset=1, include_background=False)
    cam = torch.full((1, 1, 4, 4), 0.1)
    cam[..., 2:] = 0.9
    mask = task.base_masks(batch, cam, keys, present)[0]
    assert mask[:, :6].unique().tolist() == [0]
    assert mask[:, 10:].unique().tolist() == [3]


def test_padding_has_no_vote_in_the_loss():
    task, batch = make_task("CAMTask"), make_batch([[1], [2]], [(32, 32), (32, 32)])
    batch["valid"][:, :, 16:] = False
    task.log = lambda *arguments, **options: None

    class Flat(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros(2, 4, 4, 2), torch.full((2, 4, 4, 2), 1e3)], dim=-1)

    task.network = Flat()
    assert float(task.training_step(batch, 0)) == pytest.approx(np.log(2))


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
    keys, present = compact_keys(batch["tags"], offset=1, include_background=False)
    cam = torch.full((1, 1, 4, 4), 0.5)
    cam[..., 2:] = 0.9
    mask = task.base_masks(batch, cam, keys, present)[0]
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


def test_images_of_the_choice_are_spread_over_the_list():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 4) == [1, 2]
