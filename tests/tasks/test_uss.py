from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.files import read_features
from dhr_lightning.errors import ConfigError
from tests.pipeline_workspace import Lines, Workspace
from tests.task_samples import make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]

STEGO = (
    "--model.init_args.backbone=vit_tiny_patch16_224",
    "--model.init_args.head=stego",
    "--model.init_args.stego.neighbours=3",
    "--model.init_args.stego.points=3",
    "--model.init_args.stego.crop_size=32",
)


def test_cluster_codes_are_shares(workspace: Workspace):
    features = read_features(workspace.store.path("uss", "train", "train_0001"))
    assert features.shape == (16, 32, 32)
    assert features.min() >= 0
    assert np.allclose(features.astype(np.float32).sum(0), 1, atol=0.01)


def test_too_few_epochs_are_refused_before_any_work(empty_workspace: Workspace, lines: Lines):
    assert empty_workspace.stage("stage2_uss", "--trainer.max_epochs=1") == 2
    assert "need trainer.max_epochs >= 2, but got 1" in lines.messages[-1]


def test_an_unknown_head_is_refused():
    with pytest.raises(ConfigError, match="one of cluster_code, principal_axes, stego, but got 'cause'"):
        make_task("USSTask", head="cause")


def test_stego_trains_its_head_and_nothing_else(empty_workspace: Workspace, lines: Lines):
    options = ["--config", "uss=stage2_stego.yaml"]
    overrides = (*STEGO, "--model.init_args.lr=0.01", "--data.batch_size=6")
    assert empty_workspace.stage("stage2_uss", *overrides, options=options) == 0, lines.text
    state = empty_workspace.weights("uss")
    fresh = make_task(
        "USSTask", head="stego", backbone="vit_tiny_patch16_224", class_names=["background", "cat"]
    ).state_dict()
    assert all(state[name].isfinite().all() for name in state)
    assert {name.split(".")[1] for name in state} == {"backbone", "head"}
    assert fresh.keys() == state.keys()
    features = read_features(empty_workspace.store.path("uss", "train", "train_0001"))
    assert features.shape == (16, 16, 16)
    assert np.isfinite(features).all()
    assert any("train/loss_stego" in line for line in lines.messages)


@torch.no_grad()
def test_padding_is_cut_off_the_features():
    task = make_task("USSTask")
    task.network.backbone.fitted.fill_(True)
    batch = make_batch([[1], [2]], [(48, 64), (64, 40)])
    shapes = [tuple(features.shape) for (features,) in task.predict_step(batch, 0)["uss"]]
    assert shapes == [(16, 12, 16), (16, 16, 10)]


