"""What a datamodule brings to the ports of a method: in training, prediction and mask refresh."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.kinds import round_address
from dhr_lightning.artifacts.runs import write_state
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.gate import Gate
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ArtifactError
from dhr_lightning.steps import Read
from tests.data.datamodules import (
    FEATURES,
    MASKS,
    Make,
    make_datamodule,
    put_cams,
    put_features,
    put_masks,
    run_epoch,
    spec_of,
)

CRF, MARS, USS, CAM = "crf/1a2b/mask", "mars/1a2b/mask", "uss/1a2b/features", "cam/1a2b/cam"


@pytest.fixture
def make(tiny_voc: Path, tmp_path: Path) -> Make:
    """A datamodule on `tiny_voc` beside two kinds of masks, features and CAMs."""
    plain = make_datamodule(tiny_voc, tmp_path)
    put_masks(plain, CRF, value=8)
    put_masks(plain, MARS, value=12)
    put_features(plain, USS)
    put_cams(plain, CAM)

    def build(*arguments: Any, **options: Any) -> WSSSDataModule:
        return make_datamodule(tiny_voc, tmp_path, *arguments, **options)

    return build


def values(batches: list[Batch], port: str = "masks") -> set[int]:
    """Class values at the pixels of images."""
    return {int(value) for batch in batches for value in batch["inputs"][port][batch["valid"]].unique()}


def test_inputs_come_only_where_the_method_reads_them(make: Make):
    reads = {
        "masks": Read(MASKS, fit=True),
        "others": Read(MASKS, predict=True, refresh=True),
        "features": Read(FEATURES, predict=True),
        "cam": Read(("cam",), refresh=True),
    }
    inputs = {"masks": CRF, "others": MARS, "features": USS, "cam": CAM}
    datamodule = make(spec_of(reads, "train", "val"), inputs=inputs)
    for batch in run_epoch(datamodule, 0):
        assert set(batch["inputs"]) == {"masks"}
        assert values([batch]) == {8}
    train, val = (list(loader) for loader in datamodule.predict_dataloader())
    for batch in train:
        assert set(batch["inputs"]) == {"others", "features"}
        assert (batch["inputs"]["others"][~batch["valid"]] == 255).all()
        assert "gt_mask" not in batch
    assert values(train, "others") == {12}
    assert not {"inputs", "gt_mask"} & set(val[0])
    assert all("inputs" not in batch for batch in datamodule.val_dataloader())
    refreshed = list(datamodule.whole_dataloader(datamodule.records("train")[:2], when="refresh"))
    assert [name for batch in refreshed for name in batch["id"]] == ["2007_000001", "2007_000002"]
    assert all(set(batch["inputs"]) == {"others", "cam"} for batch in refreshed)
    assert values(refreshed, "others") == {12}


def test_an_optional_input_that_is_not_named_is_left_out(make: Make):
    reads = {"masks": Read(MASKS, fit=True), "features": Read(FEATURES, fit=True, optional=True)}
    datamodule = make(spec_of(reads), inputs={"masks": CRF})
    assert datamodule.input_address("features") is None
    assert all(set(batch["inputs"]) == {"masks"} for batch in run_epoch(datamodule, 0))


def test_features_and_cams_belong_to_their_image(make: Make):
    reads = {"features": Read(FEATURES, fit=True, predict=True), "cam": Read(("cam",), fit=True, predict=True)}
    datamodule = make(spec_of(reads), inputs={"features": USS, "cam": CAM}, batch_size=4)
    numbers = {record.id: (index + 1, record.tags) for index, record in enumerate(datamodule.records("train"))}
    for batch in (*run_epoch(datamodule, 2), *datamodule.predict_dataloader()[0]):
        for index, name in enumerate(batch["id"]):
            number, tags = numbers[name]
            assert batch["inputs"]["features"][index].max() == pytest.approx(number)
            cam, valid = batch["inputs"]["cam"][index], batch["valid"][index]
            assert cam.shape[-2:] == valid.shape
            expected = torch.tensor([*(tag / 100 for tag in tags), *[0.0] * (len(cam) - len(tags))])
            torch.testing.assert_close(cam[:, valid].mean(1), expected, atol=1e-3, rtol=0)
            assert not cam[:, ~valid].any()


@pytest.mark.parametrize("augment", [True, False])
def test_whole_images_share_a_batch_only_with_their_canvas(make: Make, augment: bool):
    """Sizes of 64x48, 48x64, 40x56 and 64x64 pixels, with features that lie more densely in one of them."""
    spec = spec_of({"features": Read(FEATURES, fit=True, predict=True, refresh=True)})
    datamodule = make(spec, inputs={"features": USS}, task={"augment": augment}, predict_batch_size=4)
    write_features(datamodule.store.path(USS, "train", "2007_000004"), np.zeros((3, 32, 32), np.float16))
    loaders = [*datamodule.predict_dataloader(), datamodule.val_dataloader()]
    loaders += [] if augment else [datamodule.train_dataloader()]
    loaders.append(datamodule.whole_dataloader(datamodule.records("train"), when="refresh"))
    for loader in loaders:
        for batch in loader:
            own = {tuple(-(-length // 32) * 32 for length in geometry.size) for geometry in batch["geometry"]}
            assert own == {tuple(batch["pixels"].shape[-2:])}
            if "inputs" in batch:
                assert (batch["inputs"]["features"].shape[-1] == 32) == (batch["id"] == ["2007_000004"])
    assert len(loaders[-1]) > 1


def test_supervised_training_takes_the_ground_truth_in_place_of_masks(make: Make):
    datamodule = make(spec_of({"masks": Read(MASKS, fit=True, truth=True)}), inputs={"masks": "truth"})
    (batch, *_) = run_epoch(datamodule, 0)
    assert "inputs" not in batch
    batch = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(batch["inputs"]["masks"], batch["gt_mask"])
    datamodule.trainer.training = False
    assert "inputs" not in datamodule.on_after_batch_transfer(next(iter(datamodule.val_dataloader())), 0)


def test_the_ground_truth_reaches_no_training_that_did_not_ask_for_it(make: Make):
    weak = make(spec_of({"masks": Read(MASKS, fit=True)}), inputs={"masks": CRF})
    for batch in run_epoch(weak, 0):
        arrived = weak.on_after_batch_transfer(batch, 0)
        assert "gt_mask" not in arrived
        assert values([arrived]) == {8}
    (batch, *_) = weak.val_dataloader()
    assert "inputs" not in weak.on_after_batch_transfer(batch, 0)


class Run:
    """A run whose outputs have a key."""

    step = "refine"

    def address(self, kind: str) -> str:
        return f"toy/5e4d/{kind}"


def test_training_reads_the_masks_of_its_own_round_and_a_refresh_those_of_the_recipe(make: Make):
    spec = spec_of({"masks": Read(MASKS, refresh=True)}, rounds=True)
    first, second = (make(spec, inputs={"masks": CRF}) for _ in range(2))
    for number, value in ((0, 6), (3, 7)):
        put_masks(first, round_address("toy/5e4d/mask", number), value=value)
    for datamodule in (first, second):
        datamodule.attach(Run())
    assert first.step == "refine"
    assert first.output_folder("mask", "train") == first.store.folder("toy/5e4d/mask", "train")
    assert values(run_epoch(first, 0)) == {6}
    first.set_mask_round(3)
    assert values(run_epoch(first, 0)) == {7}
    second.load_state_dict(first.state_dict())  # a round travels with the checkpoint
    assert second.mask_round == 3
    assert values(run_epoch(second, 1)) == {7}
    assert second.round_path("train", "a") == second.store.path("toy/5e4d/mask/round_03", "train", "a")
    assert values(list(second.whole_dataloader(second.records("train"), when="refresh"))) == {8}
    assert second.predict_splits == ()  # prediction writes none of them


def test_a_loader_follows_the_round_that_is_set_after_it_was_made(make: Make):
    datamodule = make(spec_of({"masks": Read(MASKS, refresh=True)}, rounds=True), inputs={"masks": CRF})
    datamodule.attach(Run())
    for number, value in ((0, 6), (1, 7)):
        put_masks(datamodule, round_address("toy/5e4d/mask", number), value=value)
    loader = datamodule.train_dataloader()
    assert values(list(loader)) == {6}
    datamodule.set_mask_round(1)
    assert values(list(loader)) == {7}


def test_without_a_run_nothing_can_be_written(make: Make):
    with pytest.raises(ArtifactError, match="No run is attached to this data"):
        make(spec_of(rounds=True)).train_dataloader()


@pytest.mark.parametrize(("harmful", "force", "value"), [(True, False, 8), (True, True, 12), (False, False, 12)])
def test_harmful_masks_are_replaced_by_their_source_unless_forced(make: Make, harmful: bool, force: bool, value: int):
    spec = spec_of({"masks": Read(MASKS, fit=True, refresh=True)})
    hparams = SimpleNamespace(get=lambda name, default: force if name == "force_masks" else default)
    datamodule = make(spec, inputs={"masks": MARS}, task={"hparams": hparams})
    gate = Gate(CRF, 0.2 if harmful else 0.0, 0.0, max_lost_tags=0.1, max_rejected=0.6).record()
    put_masks(datamodule, MARS, value=12, gate=gate)
    assert datamodule.input_address("masks") == (MARS if value == 12 else CRF)
    assert values(run_epoch(datamodule, 0)) == {value}
    assert values(list(datamodule.whole_dataloader(datamodule.records("train"), when="refresh"))) == {value}


def test_weights_are_those_of_a_finished_fit(make: Make, tmp_path: Path):
    spec = spec_of({"init": Read(optional=True)})
    assert make(spec).weights("init") is None
    datamodule = make(spec, inputs={"init": "wss/1a2b"})
    assert datamodule.input_address("init") == "wss/1a2b"
    folder = tmp_path / "runs" / "voc" / "wss" / "1a2b"
    checkpoint = folder / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for state in (None, {"run": "version_0", "fitted": False}):
        if state:
            write_state(folder, state)
        with pytest.raises(ArtifactError, match=r"starts from \(init: wss/1a2b\) are not there"):
            datamodule.weights("init")
    write_state(folder, {"run": "version_0", "fitted": True})
    assert datamodule.weights("init") == checkpoint
    assert all("inputs" not in batch for batch in run_epoch(datamodule, 0))


def test_a_named_method_counts_more_than_the_task(make: Make):
    datamodule = make(spec_of({"other": Read(MASKS, fit=True)}), method="wss", inputs={"masks": CRF})
    assert datamodule.spec.name == "wss"
    assert datamodule.predict_splits == ("train", "val")
    assert values(run_epoch(datamodule, 0)) == {8}
