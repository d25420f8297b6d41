"""Without a cache files hold no channel, and readers compute the very features that a cache would hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dhr_lightning.artifacts.arrays import features_shape, read_features
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.stored import GridCrop
from dhr_lightning.methods.features.frozen.task import FrozenTask
from dhr_lightning.steps import Read
from tests.data.datamodules import FEATURES, make_datamodule, run_epoch, spec_of
from tests.data.frozen_samples import VIT
from tests.methods.frozen_samples import SMALL, FrozenRun

READS = {"features": Read(FEATURES, fit=True, predict=True, splits=("train", "val", "test"))}
SETTINGS = {"scales": [1.0, 0.75], "flip": True}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in a file, so that another process starts from the same ones."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{VIT}.pth"
    torch.save(timm.create_model(VIT, num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def runs(tiny_voc: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, FrozenRun]:
    """With and without a cache, in one workspace. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    settings: dict[str, Any] = {"pretrained": str(weights), **SETTINGS}
    return {cache: FrozenRun(tiny_voc, folder, cache=cache, **settings).predict() for cache in (True, False)}


def reading(run: FrozenRun, taps: tuple[str, ...] | None = None, **task: Any) -> WSSSDataModule:
    """A datamodule of a step that reads the features of a run."""
    attributes = {"canvas_divisor": 1, "grid_crop": GridCrop(3, 0.5), "taps": taps, **task}
    data = run.datamodule
    return make_datamodule(
        data.root, data.workspace, spec_of(READS, "train", "val"), task=attributes, inputs={"features": run.address}
    )


def test_files_say_the_grid_alone(runs: dict[bool, FrozenRun]):
    cached, live = runs[True], runs[False]
    assert cached.address != live.address
    assert cached.files().keys() == live.files().keys()
    for place in cached.files():
        channels, *grid = features_shape(cached.path(*place))
        assert features_shape(live.path(*place)) == (0, *grid)
        assert read_features(live.path(*place)).shape == (0, *grid)
        assert channels == 384


def test_the_manifest_says_how_to_compute_them(runs: dict[bool, FrozenRun], weights: Path):
    live, cached = (runs[cache].manifest().info for cache in (False, True))
    assert live["live"] == {
        "backbone": VIT, "pretrained": str(weights), "taps": SMALL["taps"], "side": 64, "scales": [1.0, 0.75],
        "flip": True, "normalize": True, "compute": "bfloat16",
    }  # fmt: skip
    assert "live" not in cached
    assert {**cached, **live}["taps"] == {"block2": 192, "block1": 192} == cached["taps"]


@pytest.mark.parametrize("taps", [None, ("block1",), ("block1", "block2")])
def test_readers_get_the_features_that_a_cache_would_hold(runs: dict[bool, FrozenRun], taps: tuple[str, ...] | None):
    cached, live = (reading(runs[cache], taps) for cache in (True, False))
    records = cached.records("train")
    pairs = [
        *zip(run_epoch(cached, 3), run_epoch(live, 3), strict=True),
        *zip(cached.stored_dataloader(records), live.stored_dataloader(records), strict=True),
        *zip(cached.val_dataloader(), live.val_dataloader(), strict=True),
        (cached.whole_batch(records[:1]), live.whole_batch(records[:1])),
    ]
    pairs += [
        pair
        for loaders in zip(cached.predict_dataloader(), live.predict_dataloader(), strict=True)
        for pair in zip(*loaders, strict=True)
    ]
    assert len(pairs) > 8
    for one, other in pairs:
        assert one["id"] == other["id"]
        assert one["inputs"]["features"].dtype == other["inputs"]["features"].dtype
        assert torch.equal(one["inputs"]["features"], other["inputs"]["features"])
        assert one["inputs"]["features"].shape[1] == (384 if taps is None else 192 * len(taps))
    if taps is None:
        stored = torch.from_numpy(read_features(runs[True].path("train", records[0].id))).float()
        assert torch.equal(live.whole_batch(records[:1])["inputs"]["features"][0], stored)
    assert cached.tap_channels("features") == live.tap_channels("features")


def test_batches_of_whole_images_share_a_canvas_and_a_grid_without_a_cache(runs: dict[bool, FrozenRun]):
    live = reading(runs[False])
    for loader in live.predict_dataloader():
        for batch in loader:
            assert batch["valid"].all()
            assert batch["inputs"]["features"].abs().sum((1, 2, 3)).min() > 0


def test_without_a_cache_no_space_is_said_and_nothing_is_computed(
    tiny_voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    run = FrozenRun(tiny_voc, tmp_path, cache=False)
    monkeypatch.setattr("dhr_lightning.methods.features.frozen.task.space_needed", refuse)
    monkeypatch.setattr(run.task.reader.__class__, "images", refuse)
    monkeypatch.setattr(run.task.network, "forward", refuse)
    assert len(run.predict().files()) == 6


def test_the_reader_is_made_once_for_all_inputs(runs: dict[bool, FrozenRun]):
    live = reading(runs[False])
    sources = [live._sources("predict", split)["features"] for split in ("train", "val")]
    assert sources[0].live is not None
    assert sources[0].live is sources[1].live
    assert sources[0].live.computes
    assert reading(runs[True])._sources("fit")["features"].live is None


def test_settings_that_a_run_has_are_the_recorded_ones():
    task = FrozenTask(class_names=["background", "cat"], cache=False, **SMALL)
    assert task.inference_info()["live"] == task.reader.settings.record()
    assert "live" not in FrozenTask(class_names=["background", "cat"], **SMALL).inference_info()
