"""When the memory of a GPU runs out: one image at a time, then tiles of half the sides, once, and it is recorded."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.callbacks.writers import inference_info
from dhr_lightning.methods import memory
from dhr_lightning.methods.inference import Inference, half_tile
from dhr_lightning.methods.memory import within_memory
from dhr_lightning.models.segmenter import SegmenterOutput
from dhr_lightning.steps import methods
from tests.task_samples import make_batch

CPU = torch.device("cpu")


class Limited(nn.Module):
    """Follows the colour of each pixel, so that tiles change nothing, and has room for so many pixels."""

    def __init__(self, room: int, error: type[Exception] = torch.cuda.OutOfMemoryError) -> None:
        super().__init__()
        self.room, self.error = room, error
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> SegmenterOutput:
        self.sizes.append((len(image), *image.shape[-2:]))
        if image.numel() // 3 > self.room:
            raise self.error("too large")
        weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        return SegmenterOutput(3 * torch.einsum("kc,bchw->bkhw", weights, image), None, [])


def batch_of(count: int, size: tuple[int, int] = (128, 192)) -> dict[str, Any]:
    batch = make_batch([[1]] * count, [size] * count)
    return {**batch, "image": torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))}


def test_images_that_do_not_fit_together_come_one_by_one():
    batch, inference = batch_of(3), Inference((1.0,), flip=False)
    expected = inference(Limited(10**9), batch)
    alone = Limited(128 * 192)
    assert torch.equal(inference(alone, batch), expected)
    assert alone.sizes == [(3, 128, 192), *[(1, 128, 192)] * 3]
    assert inference.tiled == []


def test_an_image_that_does_not_fit_comes_in_tiles_and_is_recorded(caplog: pytest.LogCaptureFixture):
    batch, inference = batch_of(1), Inference((1.0,), flip=False)
    expected = inference(Limited(10**9), batch)
    tiled = Limited(96 * 96)
    assert torch.equal(inference(tiled, batch), expected)
    assert half_tile(128, 192) == 96
    assert set(tiled.sizes[2:]) == {(1, 96, 96)}
    assert inference.tiled == batch["id"]
    recorded = partial(inference_info, SimpleNamespace(inference=inference), "val", device=CPU)
    assert recorded(ids=["another", *batch["id"]])["tiled_out_of_memory"] == batch["id"]
    assert "tiled_out_of_memory" not in recorded(ids=["another"])  # of another split


def test_every_method_predicts_images_alone_where_several_do_not_fit():
    alone_anyway = {"FrozenTask", "CropsTask"}  # one photo at a time; small crops of one size
    tasks = {method.spec.task_class() for method in methods().values()}
    assert len(tasks) > 15
    assert {task.__name__ for task in tasks if not retries(task.predict_step)} == alone_anyway


def retries(function: Any) -> bool:
    """Whether a function is, or wraps, one that `one_by_one_if_needed` has made."""
    layers = [function]
    while hasattr(layers[-1], "__wrapped__"):
        layers.append(layers[-1].__wrapped__)
    return any(layer.__code__.co_filename == memory.__file__ for layer in layers)


def test_only_once_and_nothing_else_is_caught():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Inference((1.0,))(Limited(64 * 64), batch_of(1))
    broken = Limited(0, RuntimeError)
    with pytest.raises(RuntimeError, match="too large"):
        Inference((1.0,))(broken, batch_of(2))
    assert len(broken.sizes) == 1
    assert within_memory(lambda image: image, torch.ones(1)) == torch.ones(1)
    assert [half_tile(*size) for size in ((30, 20), (500, 375), (641, 100))] == [64, 224, 320]
