from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.callbacks import writers
from dhr_lightning.callbacks.writers import ArtifactWriters, enter_together, inference_info, to_arrays
from tests.task_samples import make_task


@pytest.mark.parametrize(
    ("kind", "tensors", "dtypes"),
    [
        ("cam", [torch.tensor([1, 7]), torch.rand(2, 3, 4)], ["int16", "float16"]),
        ("patches/1a2b/features", [torch.rand(5, 3, 4)], ["float16"]),
        ("mask", [torch.tensor([[0, 255], [3, 1]])], ["uint8"]),
        ("dhr/mask/round_02", [torch.tensor([[0, 255], [3, 1]])], ["uint8"]),
    ],
)
def test_arrays_have_the_type_that_the_kind_stores(kind: str, tensors: list[torch.Tensor], dtypes: list[str]):
    arrays = to_arrays(kind, tensors)
    assert [array.dtype.name for array in arrays] == dtypes
    for array, tensor in zip(arrays, tensors, strict=True):
        assert np.allclose(array, tensor.numpy(), atol=1e-3)


@pytest.mark.parametrize(("first", "order"), [(True, ["open", "declared"]), (False, ["declared", "open"])])
def test_the_first_rank_opens_before_the_others(first: bool, order: list[str]):
    events: list[str] = []

    @contextmanager
    def writer() -> Any:
        events.append("open")
        yield "writer"
        events.append("closed")

    trainer = SimpleNamespace(is_global_zero=first, strategy=SimpleNamespace(barrier=events.append))
    opened = writer()
    with enter_together(trainer, opened) as entered:
        assert entered is opened
        assert events == order
    assert events == [*order, "closed"]


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("refine", "device", "name"),
    [("auto", CPU, "pydensecrf"), ("auto", CUDA, "lattice"), ("pamr", CUDA, "pamr"), ("none", CPU, "none")],
)
def test_the_refinement_of_the_device_is_recorded(
    monkeypatch: pytest.MonkeyPatch, refine: str, device: torch.device, name: str
):
    monkeypatch.setattr("dhr_lightning.ops.refine.has_pydensecrf", lambda: True)
    assert inference_info(make_task("PropagationTask", refine=refine), "train", ids=[], device=device)["refine"] == name
    assert inference_info(make_task("CAMTask"), "train", ids=[], device=device) == {"refine": "none"}


def test_the_crf_of_the_device_is_recorded_in_the_protocol(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dhr_lightning.ops.refine.has_pydensecrf", lambda: True)
    task = make_task("DHRTask", test_crf={})
    for device, name in ((CPU, "pydensecrf"), (CUDA, "lattice")):
        info = inference_info(task, "val", ids=[], device=device)
        assert info["refine"] == info["protocol"]["backend"] == name
    assert inference_info(make_task("DHRTask"), "val", ids=[], device=CUDA)["refine"] == "none"


def test_what_came_in_tiles_on_any_rank_is_sealed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writers, "gathered", lambda names: [names, ["of another rank"]])
    sealed: list[list[str]] = []
    monkeypatch.setattr(ArtifactWriters, "_seal", lambda self, trainer, task: sealed.append(task.inference.tiled))
    trainer = SimpleNamespace(strategy=SimpleNamespace(barrier=lambda name: None))
    task = make_task("WSSTask")
    task.inference.tiled.append("of this one")
    ArtifactWriters().on_predict_end(trainer, task)
    ArtifactWriters().on_predict_end(trainer, make_task("LightTask"))
    assert sealed == [["of this one", "of another rank"], ["of another rank"]]


@pytest.mark.parametrize(("task", "words"), [("PropagationTask", "dense CRF by"), ("CAMTask", None), ("DHRTask", None)])
def test_a_step_says_which_refinement_runs_if_one_does(task: str, words: str | None, caplog: pytest.LogCaptureFixture):
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU))
    with caplog.at_level("INFO", logger="dhr_lightning"):
        ArtifactWriters().on_predict_start(trainer, make_task(task))
    said = [message for message in caplog.messages if "refinement: " in message]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]
