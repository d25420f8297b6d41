"""Features that stage 2 writes: where they lie in an image, and on which of its sides."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.artifacts.arrays import read_features
from dhr_lightning.config import resolve
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.stego.task import StegoTask
from tests.methods.uss_samples import SMALL, VIT, make_uss
from tests.pipeline_workspace import Lines, Workspace
from tests.task_samples import make_batch

pytest_plugins = ["tests.pipeline_fixtures"]


@pytest.mark.parametrize("backbone", ["patches", "mobilenet_v2", VIT])
@torch.no_grad()
def test_features_of_an_image_are_the_same_alone_and_beside_others(backbone: str):
    task = make_uss("principal_axes", backbone, dimension=6, scales=(2.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(task.network.head.projection, generator=generator)
    if backbone == "patches":
        torch.nn.init.normal_(task.network.backbone.centroids, generator=generator)
    sizes = [(48, 64), (61, 40), (48, 64), (33, 47)]
    batch = make_batch([[1], [2], [1], [1]], sizes)
    together = [features for (features,) in task.predict_step(batch, 0)["features"]]
    cell = task.network.cell
    for place, (height, width) in enumerate(sizes):
        alone = {**batch, "geometry": batch["geometry"][place : place + 1]}
        for name in ("pixels", "image"):
            alone[name] = batch[name][place : place + 1, :, :height, :width]
        (((features,),)) = task.predict_step(alone, 0)["features"]
        assert features.shape == (6, -(-2 * height // cell), -(-2 * width // cell))
        largest = features.abs().max()
        assert largest > 0
        torch.testing.assert_close(together[place] / largest, features / largest, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_lie_evenly_over_each_image_and_not_over_its_canvas():
    """The backbone shows its input, which is a ramp over each image."""
    task = make_uss("principal_axes", VIT, dimension=3, scales=(1.0,), flip=False)
    task.network.backbone.forward = lambda images: F.avg_pool2d(images, 16)
    task.network.head = torch.nn.Identity()
    batch = make_batch([[1], [1]], [(41, 64), (96, 70)])
    for place, geometry in enumerate(batch["geometry"]):
        height, width = geometry.size
        batch["image"][place] = 9.0  # in the padding
        batch["image"][place, :, :height, :width] = (torch.arange(width) + 0.5) / width
    for (features,), geometry in zip(task.predict_step(batch, 0)["features"], batch["geometry"], strict=True):
        grid = tuple(-(-length // 16) for length in geometry.size)
        columns = (torch.arange(grid[1]) + 0.5) / grid[1]
        assert features.shape == (3, *grid)
        assert (features - columns).abs().max() < 0.03


@torch.no_grad()
def test_a_mirrored_image_gets_mirrored_features():
    torch.manual_seed(0)
    task = make_uss("stego", scales=(2.0, 1.0, 0.5))
    batch = make_batch([[1]], [(48, 64)])
    ((features,),) = task.predict_step(batch, 0)["features"]
    mirrored = {**batch, "pixels": batch["pixels"].flip(-1), "image": batch["image"].flip(-1)}
    ((found,),) = task.predict_step(mirrored, 0)["features"]
    torch.testing.assert_close(found, features.flip(-1), atol=1e-4, rtol=1e-4)
    assert (features - features.flip(-1)).abs().max() > 0.02
    task.hparams.flip = False
    one, other = (task.predict_step(images, 0)["features"][0][0] for images in (batch, mirrored))
    assert (other - one.flip(-1)).abs().max() > 1e-3  # alone the network tells left from right


def test_published_scales_are_the_default_of_stego_and_one_scale_that_of_the_others():
    settings = {
        name: resolve([f"methods/{name}.yaml"])["model"]["init_args"] for name in ("stego", "fitted", "patches")
    }
    default = StegoTask(class_names=["background", "cat"], backbone=VIT, stego=SMALL).hparams
    assert tuple(settings["stego"]["scales"]) == tuple(default.scales) == (2.0, 1.0, 1.5, 0.5)
    assert default.flip
    assert settings["fitted"]["scales"] == settings["patches"]["scales"] == [1.0]
    assert settings["patches"]["flip"] is False


def test_cluster_codes_are_shares(workspace: Workspace):
    features = read_features(workspace.path("uss/train", "train_0001"))
    assert features.shape == (16, 32, 32)
    assert features.min() >= 0
    assert np.allclose(features.astype(np.float32).sum(0), 1, atol=0.01)


def test_a_stage_with_stego_says_the_space_and_writes_what_it_said(empty_workspace: Workspace, lines: Lines):
    overrides = [f"--uss.stego.{name}={value}" for name, value in SMALL.items()]
    overrides += [f"--uss.backbone={VIT}", "--uss.data.batch_size=6", "--uss.trainer.max_steps=4", "--uss.scales=[2.0]"]
    options = ["--swap", "uss=stego"]
    assert empty_workspace.stage("stage2_uss", *overrides, options=options) == 0, lines.text
    address, split = empty_workspace.places(*overrides, options=options)["uss/train"]
    features = read_features(empty_workspace.store.path(address, split, "train_0001"))
    assert features.shape == (16, 16, 16)
    assert np.isfinite(features).all()
    assert features.std() > 0
    (said,) = (line for line in lines.messages if " to write, " in line)
    assert said.startswith("features: 12 images x 16 channels x about 16 x 16 cells x 2 bytes = 98.3 kB to write, ")
    assert 12 * features.nbytes == 98_304
    assert any(re.search(r"train/loss_stego -?\d", line) for line in lines.messages)


def test_too_few_epochs_are_refused_before_any_work(empty_workspace: Workspace, lines: Lines):
    assert empty_workspace.stage("stage2_uss", "--uss.trainer.max_epochs=1") == 2
    assert "need trainer.max_epochs >= 2, but got 1" in lines.messages[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "cause"}, "head to be one of principal_axes, whitening, cluster_code, but got 'cause'"),
        ({"stego": {**SMALL, "crop_size": 40}}, "crop_size to be a multiple of the 16 pixels .*, but got 40"),
        ({"stego": {"preset": "voc"}}, "stego.preset to be one of iaroa_vit_s.*, but got 'voc'"),
        ({"scales": ()}, r"scales to be positive numbers, but got \(\)"),
        ({"scales": (1.0, 0.0)}, r"scales to be positive numbers, but got \(1.0, 0.0\)"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        make_uss(**{"head": "stego", **changes})
