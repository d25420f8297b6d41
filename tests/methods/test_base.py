from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.methods.base import check_class_names
from tests.pipeline_workspace import Lines, Workspace
from tests.stand_ins import run_folder
from tests.task_samples import NAMES, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


def rates_of(steps: int, **settings: Any) -> list[list[float]]:
    """Learning rates of encoder and head before each of `steps` steps and after the last."""
    task = make_task("CAMTask", **settings)
    task._trainer = SimpleNamespace(estimated_stepping_batches=steps)
    made = task.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def test_rate_decays_polynomially_to_zero():
    rates = rates_of(10, lr=0.1, head_lr_factor=10, power=0.9, warmup=0.0)
    for k, (encoder, head) in enumerate(rates):
        assert encoder == pytest.approx(0.1 * (1 - k / 10) ** 0.9)
        assert head == pytest.approx(1.0 * (1 - k / 10) ** 0.9)
    assert rates[-1] == [0, 0]


def test_rate_rises_linearly_first():
    rates = [encoder for encoder, _ in rates_of(20, lr=0.4, power=2.0, warmup=0.2)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4:] == pytest.approx([0.4 * (1 - k / 16) ** 2 for k in range(17)])


def test_power_zero_keeps_the_rate():
    assert [encoder for encoder, _ in rates_of(5, lr=0.3, power=0.0)][:5] == pytest.approx([0.3] * 5)


@pytest.mark.parametrize("name", ["CAMTask", "WSSTask", "DHRTask"])
def test_encoder_and_head_share_all_parameters_between_them(name: str):
    task = make_task(name)
    encoder, head = task.parameter_groups()
    assert {id(p) for p in encoder} == {id(p) for p in task.network.encoder.parameters()}
    assert {id(p) for p in encoder} | {id(p) for p in head} == {id(p) for p in task.parameters()}
    assert not {id(p) for p in encoder} & {id(p) for p in head}
    assert head


def test_a_frozen_backbone_is_not_trained():
    task = make_task("StegoTask", backbone="vit_tiny_patch16_224")
    encoder, head = task.parameter_groups()
    assert not encoder
    assert {id(p) for p in head} == {id(p) for p in task.network.head.parameters()}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"optimizer": "lion"}, "'lion'"),
        ({"lr": 0.0}, r"lr 0\.0"),
        ({"warmup": 1.0}, r"warmup 1\.0"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), but got 1\.0"),
        ({"momentum": -0.1}, r"momentum in \[0, 1\), but got -0\.1"),
        ({"frozen_norm": "affine"}, "frozen_norm to be false, statistics or true, but got 'affine'"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        make_task("WSSTask", **settings)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("method", sorted({"cam", "patches", "wss", "mars", "dhr"}))
def test_checkpoints_hold_nothing_but_plain_values_and_tensors(finished_runs: Path, method: str):
    path = run_folder(finished_runs, method) / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert is_plain(dict(checkpoint["hyper_parameters"]))
    assert checkpoint["hyper_parameters"]["class_names"][:3] == ["background", "cat", "dog"]


def test_another_class_list_is_refused_with_both_lists():
    classes = ClassSet(("background", "cat", "cow"))
    with pytest.raises(CheckpointError, match=r"trained on 2 classes \(background, cat\), but the data has 3 \(back"):
        check_class_names(["background", "cat"], classes, where="The checkpoint")
    check_class_names(None, classes, where="The checkpoint")
    task = make_task("CAMTask")
    with pytest.raises(CheckpointError, match=r"\(background, bus, car, dog, cat\).*\(background, cat, dog, car, bus"):
        task.on_load_checkpoint({"hyper_parameters": {"class_names": [NAMES[0], *NAMES[:0:-1]]}})


def test_a_loss_that_is_not_finite_stops_with_the_names_of_the_images(
    empty_workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    from dhr_lightning.methods.seeds.cam import task as cam

    calls = iter(range(100))
    monkeypatch.setattr(
        cam, "masked_mean", lambda maps, valid: maps.mean((2, 3)) * (float("nan") if next(calls) == 4 else 1)
    )
    assert empty_workspace.stage("stage1_cam", "--cam.trainer.limit_val_batches=1") == 2
    assert "The loss is nan at epoch 1, batch 1 (images train_00" in lines.messages[-1]
    assert lines.messages[-1].count("train_00") == 6
    assert empty_workspace.store.addresses() == []
    folder = run_folder(Path(), "cam") / "version_0" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_frozen_encoder_does_not_learn_and_its_parameters_are_not_optimised():
    task = make_task("CAMTask", frozen_encoder=True)
    task.configure_model()
    encoder, head = task.parameter_groups()
    assert not encoder
    assert head
    assert not any(module.training for module in task.train().network.encoder.modules())
    assert task.network.training
