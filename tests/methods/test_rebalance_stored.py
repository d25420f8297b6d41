"""The mask step of DHR on stored features: which layers it reads, how they are scaled, and what it writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods import rebalancing
from dhr_lightning.methods.masks.rebalance_stored.task import RebalanceStoredTask
from dhr_lightning.methods.masks.stored_layers import chosen_layers, default_layers, stored_inputs
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from tests.stand_ins import keep
from tests.stored_samples import CAMS, MASKS, features_of, predict, put_cams, put_masks, stored_module, task_on
from tests.task_samples import make_task

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny run does not have


@pytest.mark.parametrize(
    ("taps", "uss", "wss"),
    [
        (["block8", "block11", "keys", "vv"], ("keys",), ("block11", "vv")),
        (["keys", "vv"], ("keys",), ("vv",)),
        (["stage3", "stage4", "stage5"], ("stage5",), ("stage4", "stage5")),
        (["keys"], ("keys",), ("keys",)),
        (["features"], ("features",), ("features",)),
    ],
)
def test_layers_that_nobody_names(taps: list[str], uss: tuple[str, ...], wss: tuple[str, ...]):
    assert default_layers(taps) == {"uss": uss, "wss": wss}


def test_named_layers_are_those_of_the_setting():
    assert chosen_layers(None) is None
    assert chosen_layers({"uss": ["keys"], "wss": ["b", "a"]}) == {"uss": ("keys",), "wss": ("b", "a")}
    for wrong in ({"uss": ["keys"]}, {"uss": ["keys"], "wss": []}, {"uss": ["a"], "wss": ["a"], "cam": ["a"]}):
        with pytest.raises(ConfigError, match="layers for uss and for wss"):
            chosen_layers(wrong)


def batch_of(tags: list[list[float]]) -> Batch:
    """Whole images of 16 x 24 pixels with CAMs at every pixel, and layers on a grid of 2 x 3."""
    generator = torch.Generator().manual_seed(0)
    count, most = len(tags), max(int(sum(one)) for one in tags)
    return Batch(
        pixels=torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=generator),
        valid=torch.ones(count, 16, 24, dtype=torch.bool),
        tags=torch.tensor(tags),
        inputs={"masks": torch.zeros(count, 16, 24, dtype=torch.int64),
                "cam": torch.rand(count, most, 16, 24, generator=generator)},
    )  # fmt: skip


TAPS = {"a": torch.randn(2, 2, 2, 3), "keys": torch.randn(2, 3, 2, 3), "b": torch.randn(2, 4, 2, 3)}
TAGS = [[1.0, 0, 1], [0.0, 1, 0]]


@pytest.mark.parametrize("offset", [0, 1])
def test_the_mask_step_is_given_cams_in_the_order_of_the_classes_on_twice_the_grid(offset: int):
    batch = batch_of(TAGS)
    classes = ImageClasses.from_tags(
        batch["tags"], offset=offset, include_background=bool(offset), valid=batch["valid"]
    )
    layers = {"uss": ("keys", "a"), "wss": ("b", "keys")}
    inputs = stored_inputs(batch, classes, batch["inputs"]["cam"], TAPS, layers)
    assert inputs.cam.shape == (2, 2 + offset, 4, 6)
    fine = F.interpolate(batch["inputs"]["cam"], (4, 6), mode="bilinear", align_corners=False, antialias=False)
    assert not inputs.cam[:, :offset].any()  # the background has no CAM
    torch.testing.assert_close(inputs.cam[:, offset:], fine, atol=0.2, rtol=0)
    assert inputs.image is batch["pixels"]
    assert inputs.mask is batch["inputs"]["masks"]
    assert inputs.classes is classes
    torch.testing.assert_close(inputs.uss, torch.cat([TAPS["keys"], TAPS["a"]], 1))
    assert all(one is TAPS[name] for one, name in zip(inputs.wss, ("b", "keys"), strict=True))
    default = stored_inputs(batch, classes, batch["inputs"]["cam"], TAPS, None)
    assert torch.equal(default.uss, TAPS["keys"])
    assert [len(one[0]) for one in default.wss] == [2, 4]


def test_images_without_a_tag_have_a_background_and_no_cam():
    batch = batch_of([[0.0, 0, 0], [0.0, 0, 0]])
    classes = ImageClasses.from_tags(batch["tags"], offset=1, include_background=True, valid=batch["valid"])
    inputs = stored_inputs(batch, classes, batch["inputs"]["cam"], TAPS, None)
    assert inputs.cam.shape == (2, 1, 4, 6)
    assert not inputs.cam.any()


def stored(root: Path, folder: Path, **settings: Any) -> Any:
    datamodule = stored_module(root, folder, "rebalance_stored", inputs={"masks": MASKS, "cam": CAMS}, **settings)
    put_masks(datamodule)
    put_cams(datamodule)
    return datamodule


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RebalanceInputs, dict[str, Any]]]:
    """What the mask step is given."""
    calls: list[tuple[RebalanceInputs, dict[str, Any]]] = []

    def spy(inputs: RebalanceInputs, **options: Any) -> SimpleNamespace:
        calls.append((inputs, options))
        return SimpleNamespace(mask=inputs.mask)

    monkeypatch.setattr(rebalancing, "rebalance", spy)
    return calls


def expected_features(datamodule: Any, image: int, *, standardize: bool) -> Tensor:
    """All seven channels of a training image, scaled by hand."""
    maps = [torch.from_numpy(features_of(record)).float() for record in datamodule.records("train")]
    cells = torch.cat([one.flatten(1) for one in maps], 1)
    if not standardize:
        return maps[image]
    mean, std = cells.mean(1), cells.std(1, correction=0)
    return (maps[image] - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("layers", [None, {"uss": ["block1"], "wss": ["keys", "block1"]}])
def test_features_are_scaled_over_the_training_images_and_split_into_layers(
    tiny_voc: Path, tmp_path: Path, seen: list[Any], layers: dict[str, list[str]] | None, standardize: bool
):
    datamodule = stored(tiny_voc, tmp_path, predict_batch_size=1)
    task = task_on(datamodule, features=layers, standardize=standardize)
    predict(task, datamodule, tmp_path)
    assert len(seen) == 4
    for index, (inputs, _) in enumerate(seen):
        whole = expected_features(datamodule, index, standardize=standardize)
        parts = {"block1": whole[:4], "keys": whole[4:]}
        assert inputs.uss.shape[1] == (4 if layers else 3)
        torch.testing.assert_close(inputs.uss[0], parts["block1" if layers else "keys"], atol=1e-3, rtol=1e-3)
        names = ["keys", "block1"] if layers else ["block1"]
        assert len(inputs.wss) == len(names)
        for one, name in zip(inputs.wss, names, strict=True):
            torch.testing.assert_close(one[0], parts[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("layers", [None, {"uss": ["block1"], "wss": ["keys"]}])
def test_a_step_read_as_uss_takes_the_place_of_a_layer_as_it_is_on_its_own_grid(
    tiny_voc: Path, tmp_path: Path, seen: list[Any], layers: dict[str, list[str]] | None
):
    """It has another number of cells, and no layer of the same names as the stored ones."""
    head = "stego/1a2b/features"
    inputs = {"masks": MASKS, "cam": CAMS, "uss": head}
    datamodule = stored_module(tiny_voc, tmp_path, "rebalance_stored", inputs=inputs, predict_batch_size=1)
    put_masks(datamodule)
    put_cams(datamodule)
    own = {}
    for number, record in enumerate(datamodule.records("train")):
        height, width = features_of(record).shape[1:]
        own[record.id] = (np.full((5, 2 * height, 2 * width), number, np.float16),)
    keep(datamodule, head, "train", own)
    predict(task_on(datamodule, features=layers), datamodule, tmp_path)
    assert len(seen) == 4
    for index, (inputs_of, _) in enumerate(seen):
        (expected,) = own[datamodule.records("train")[index].id]
        assert torch.equal(inputs_of.uss[0], torch.from_numpy(expected).float())
        whole = expected_features(datamodule, index, standardize=True)
        wss = whole[4:] if layers else whole[:4]
        torch.testing.assert_close(inputs_of.wss[0][0], wss, atol=1e-3, rtol=1e-3)


def test_only_layers_that_are_compared_are_read(tiny_voc: Path, tmp_path: Path, seen: list[Any]):
    datamodule = stored(tiny_voc, tmp_path)
    task = task_on(datamodule, features={"uss": ["keys"], "wss": ["keys"]})
    predict(task, datamodule, tmp_path)
    assert task.taps == ("keys",)
    assert task.tap_channels() == {"keys": 3}
    assert task_on(datamodule).taps is None
    assert task_on(datamodule, features={"uss": ["b", "a"], "wss": ["a", "c"]}).taps == ("b", "a", "c")


def test_settings_of_the_mask_step_arrive_there(tiny_voc: Path, tmp_path: Path, seen: list[Any]):
    datamodule = stored(tiny_voc, tmp_path)
    options = {
        "rebalance": {"seed": "none", "temperature": 0.3},
        "crf_seed": {"iterations": 2},
        "crf_final": {"iterations": 3},
        "refine_scale": 0.5,
    }
    task = task_on(datamodule, **options)
    found = predict(task, datamodule, tmp_path)
    given = seen[0][1]
    assert (given["settings"].seed, given["settings"].temperature) == ("none", 0.3)
    assert given["refine_seed"] is task.refine_seed
    assert given["refine_final"] is task.refine_final
    assert (task.refine_seed.settings.iterations, task.refine_final.settings.iterations) == (2, 3)
    assert task.refine_seed.cache is task.refine_final.cache
    assert set(found) == {f"mask/{record.id}" for record in datamodule.records("train")}


def test_masks_show_tags_only_whatever_the_batches(tiny_voc: Path, tmp_path: Path):
    datamodule, found = stored(tiny_voc, tmp_path), []
    for size, order in ((1, 1), (4, -1)):
        datamodule.predict_batch_size = size
        datamodule._records = {split: records[::order] for split, records in datamodule._records.items()}
        found.append(predict(task_on(datamodule, refine="none"), datamodule, tmp_path))
    for record in datamodule.records("train"):
        (one,), (other,) = (masks[f"mask/{record.id}"] for masks in found)
        assert torch.equal(one, other)
        assert set(one.unique().tolist()) <= {0, *record.tags, 255}
        assert set(record.tags) <= set(one.unique().tolist())


def test_nothing_is_optimised():
    task: RebalanceStoredTask = make_task("RebalanceStoredTask")
    assert task.configure_optimizers() is None
    assert not list(task.parameters())
