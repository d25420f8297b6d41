"""What a task takes over from the weights of an earlier step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import CheckpointError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.segmentation import load_encoder
from dhr_lightning.steps import StepSpec
from tests.task_samples import NAMES, make_task


class Task(BaseTask):
    """The smallest task: an encoder and a head of one weight each."""

    spec = StepSpec("none", "none", "the smallest")

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"class_names": NAMES, **options})
        self.network = nn.Module()
        self.network.encoder = nn.Conv2d(1, 1, 1, bias=False)
        self.network.head = nn.Conv2d(1, 1, 1, bias=False)


@pytest.fixture
def cam_checkpoint(tmp_path: Path) -> Path:
    path, task = tmp_path / "cam.ckpt", make_task("CAMTask")
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": {"class_names": NAMES}}, path)
    return path


def test_encoder_and_classifier_are_taken_over(cam_checkpoint: Path):
    source, task = torch.load(cam_checkpoint, weights_only=True)["state_dict"], make_task("DHRTask")
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.fill_(7)
    load_encoder(task.network, cam_checkpoint, task.classes, keys=("encoder", "classifier"))
    for name, tensor in task.state_dict().items():
        if name.startswith(("network.encoder.", "network.classifier.")):
            assert torch.equal(tensor, source[name])
    assert all(bool((p == 7).all()) for p in task.network.decoder.parameters())


def test_weights_that_do_not_fit_are_refused(cam_checkpoint: Path, tmp_path: Path):
    task = make_task("WSSTask")
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt is missing\. Run the step that made it again"):
        load_encoder(task.network, tmp_path / "nowhere.ckpt", task.classes, keys=("encoder",))
    with pytest.raises(CheckpointError, match=r"cam\.ckpt was trained on 5 classes"):
        load_encoder(task.network, cam_checkpoint, ClassSet(("background", "cat")), keys=("encoder",))
    with pytest.raises(CheckpointError, match=r"does not fit this network: \d+ of \d+ tensors differ, first"):
        load_encoder(torch.nn.Linear(2, 2), cam_checkpoint, task.classes, keys=("encoder",))
    with pytest.raises(CheckpointError, match="0 of 0 tensors"):
        load_encoder(task.network, cam_checkpoint, task.classes, keys=("decoder",))


def test_weights_without_a_class_list_are_taken_over_if_they_fit(tmp_path: Path):
    source, task = Task(), Task()
    path = tmp_path / "plain.ckpt"
    torch.save({"state_dict": {**source.state_dict(), "other.weight": torch.zeros(1)}}, path)
    head = task.network.head.weight.clone()
    load_encoder(task.network, path, task.classes, keys=("encoder",))
    assert torch.equal(task.network.encoder.weight, source.network.encoder.weight)
    assert torch.equal(task.network.head.weight, head)


def test_weights_are_read_on_the_host_and_nothing_in_the_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint of a machine with an accelerator is read on one without."""
    task, path, seen, real = Task(), tmp_path / "cam.ckpt", [], torch.load
    torch.save({"state_dict": task.state_dict()}, path)
    monkeypatch.setattr(torch, "load", lambda file, **options: seen.append(options) or real(file, **options))
    load_encoder(task.network, path, task.classes, keys=("encoder",))
    assert seen == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_one_tensor_that_does_not_fit_stops_the_transfer(tmp_path: Path, change: str):
    task, path = Task(), tmp_path / "other.ckpt"
    state = {"network.encoder.weight": torch.zeros(1, 1, 1, 1)}
    wrong = {"network.encoder.bias": torch.zeros(1)} if change == "missing" else {}
    if change == "shape":
        state["network.encoder.weight"] = torch.zeros(2, 1, 1, 1)
    torch.save({"state_dict": {**state, **wrong}}, path)
    name = "encoder.bias" if change == "missing" else "encoder.weight"
    with pytest.raises(CheckpointError, match=rf"1 of {1 + len(wrong)} tensors differ, first \['{name}'\]"):
        load_encoder(task.network, path, task.classes, keys=("encoder",))
