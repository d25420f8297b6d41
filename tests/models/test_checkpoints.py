"""Checkpoints that cannot be used are refused with what to do, and never used in part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.errors import CheckpointError, DataError
from dhr_lightning.methods.inference import Inference
from dhr_lightning.models.checkpoints import check_finite_weights, read_checkpoint
from dhr_lightning.models.weights import read_state
from tests.task_samples import make_task


def test_a_whole_checkpoint_is_read_as_it_is(tmp_path: Path):
    kept = {"state_dict": {"a": torch.ones(3), "n": torch.tensor(2)}, "epoch": 4}
    torch.save(kept, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert found["epoch"] == 4
    assert torch.equal(found["state_dict"]["a"], torch.ones(3))


def test_a_checkpoint_that_is_cut_off_says_so(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3000)}}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be read: .*Remove it and run the step"):
        read_checkpoint(path)


class Anything:
    pass


@pytest.mark.parametrize("read", [read_checkpoint, lambda path: read_state(path, what="the encoder")])
def test_other_objects_are_refused_without_advice_to_load_them_all_the_same(tmp_path: Path, read: Any):
    torch.save({"state_dict": {"a": torch.ones(2)}, "thing": Anything()}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "hostile.pth")
    assert "could run code and are not loaded" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float):
    state = {"fine": torch.ones(2), "count": torch.tensor(3), "bad": torch.tensor([1.0, value, value])}
    with pytest.raises(CheckpointError, match=r"Here holds 2 of 3 values that are not finite in 'bad'"):
        check_finite_weights(state, where="Here")
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last.ckpt holds 2 of 3 .* 'bad'"):
        read_checkpoint(tmp_path / "last.ckpt")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth holds 2 of 3 .* 'bad'"):
        read_state(tmp_path / "weights.pth", what="the encoder")


@pytest.mark.parametrize("name", ["CAMTask", "WSSTask"])
def test_no_task_takes_weights_that_are_not_finite(name: str):
    task = make_task(name)
    checkpoint = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    task.on_load_checkpoint(checkpoint)
    first = next(key for key, value in checkpoint["state_dict"].items() if value.is_floating_point())
    checkpoint["state_dict"][first].view(-1)[0] = torch.nan
    with pytest.raises(CheckpointError, match=rf"{first!r}"):
        task.on_load_checkpoint(checkpoint)


def test_the_first_image_without_numbers_is_named():
    inference = Inference(scales=(1.0,), flip=False)
    probability = torch.full((3, 2, 4, 4), 0.5)
    batch = {"id": ["a", "b", "c"], "valid": torch.ones(3, 4, 4, dtype=torch.bool)}
    assert inference.masks(probability, batch).shape == (3, 4, 4)
    probability[1:, 0, 2, 3] = torch.nan
    with pytest.raises(DataError, match=r"not finite for image 'b'"):
        inference.masks(probability, batch)
