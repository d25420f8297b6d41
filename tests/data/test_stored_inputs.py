"""What a datamodule brings of stored features: the layers that a task names, whole, in batches without padding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts import arrays
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.dataset import Source
from dhr_lightning.data.run_inputs import chosen_taps
from dhr_lightning.data.stored import GridCrop
from dhr_lightning.errors import ConfigError
from dhr_lightning.steps import Read
from tests.data.datamodules import FEATURES, MASKS, Make, make_datamodule, put, put_masks, run_epoch, spec_of

CRF, FROZEN, PLAIN = "crf/1a2b/mask", "frozen/1a2b/features", "uss/1a2b/features"
TAPS = {"early": 1, "late": 3, "keys": 2}  # channels
READS = {
    "masks": Read(MASKS, fit=True, truth=True),
    "features": Read(FEATURES, fit=True, predict=True, refresh=True, splits=("train", "val", "test")),
}


def layers(index: int, size: tuple[int, int], first: int = 0) -> tuple[np.ndarray]:
    """Features `(6, H / 4, W / 4)` whose channels say which they are, in the tens, and which image it is."""
    channels = np.arange(6, dtype=np.float16)[:, None, None] * 10 + index + first
    return (np.broadcast_to(channels, (6, size[0] // 4, size[1] // 4)).copy(),)


@pytest.fixture
def make(tiny_voc: Path, tmp_path: Path) -> Make:
    """A datamodule on `tiny_voc` beside masks and features of both splits."""
    plain = make_datamodule(tiny_voc, tmp_path)
    put_masks(plain, CRF)
    for split, first in (("train", 0), ("val", 5)):
        put(plain, FROZEN, lambda index, size, first=first: layers(index, size, first), split=split, taps=TAPS)
    put(plain, PLAIN, layers)

    def build(
        taps: Sequence[str] | None = None, *, reads: Mapping[str, Read] = READS, address: str = FROZEN,
        task: Mapping[str, Any] | None = None, **options: Any,
    ) -> WSSSDataModule:  # fmt: skip
        attributes = {"canvas_divisor": 1, "grid_crop": GridCrop(), "taps": taps, **(task or {})}
        inputs = {"masks": CRF, "features": address, **options.pop("inputs", {})}
        inputs = {port: named for port, named in inputs.items() if port in reads}
        return make_datamodule(
            tiny_voc, tmp_path, spec_of(reads, "train", "val"), task=attributes, inputs=inputs, **options
        )

    return build


def channels(features: torch.Tensor) -> list[int]:
    """Which channels `(B, D, h, w)` holds."""
    return (features[:, :, 0, 0] // 10).unique(dim=0).int().squeeze(0).tolist()


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ((), [0, 1, 2, 3, 4, 5]),
        (("late",), [1, 2, 3]),
        (("keys", "early"), [4, 5, 0]),
        (("keys", "keys"), [4, 5]),
    ],
)
def test_batches_hold_the_layers_that_the_task_names_in_its_order(
    make: Make, taps: tuple[str, ...] | None, expected: list[int]
):
    datamodule = make(taps)
    batches = [*run_epoch(datamodule, 0), *datamodule.stored_dataloader(datamodule.records("train"))]
    batches += [datamodule.whole_batch([record]) for record in datamodule.records("train")]
    batches += [*datamodule.val_dataloader(), *(one for loader in datamodule.predict_dataloader() for one in loader)]
    batches += list(datamodule.whole_dataloader(datamodule.records("train"), when="refresh"))
    assert len(batches) > 12
    assert all(channels(batch["inputs"]["features"]) == expected for batch in batches)


def test_the_other_layers_are_not_read(make: Make, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    read = arrays.read_features
    monkeypatch.setattr(
        "dhr_lightning.data.dataset.read_features", lambda path, ranges: asked.append(ranges) or read(path, ranges)
    )
    make(("keys", "early")).whole_batch(make().records("train")[:1])
    assert asked == [(slice(4, 6), slice(0, 1))]


def test_features_without_names_are_one_layer(make: Make):
    assert make(address=PLAIN).tap_channels("features") == {"features": 6}
    assert make().tap_channels("features") == TAPS
    assert list(make().tap_channels("features")) == list(TAPS)
    put(make(), "late/1a2b/features", layers, taps={"all": 6})  # of training images alone
    assert make(address="late/1a2b/features").tap_channels("features") == {"all": 6}
    whole = make(("features",), address=PLAIN)
    assert channels(whole.whole_batch(whole.records("train")[:1])["inputs"]["features"]) == list(range(6))


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(make: Make):
    datamodule = make(("late", "key", "value"), step="head")
    with pytest.raises(ConfigError) as error:
        datamodule.whole_batch(datamodule.records("train"))
    assert str(error.value) == (
        "head wants the tap 'key', but the features it reads hold early, late, keys. Name one of these, or add it to "
        "the taps of the step that writes them."
    )
    with pytest.raises(ConfigError, match="This step wants the tap 'x'"):
        chosen_taps(TAPS, ["x"], step="")
    assert chosen_taps(TAPS, ["keys", "early", "keys"], step="") == {"keys": 2, "early": 1}
    assert list(chosen_taps(TAPS, None, step="")) == list(TAPS)


def test_masks_have_no_layers(make: Make):
    reads = {**READS, "masks": Read(MASKS, fit=True, predict=True)}
    datamodule = make(("late",), reads=reads)
    batch = datamodule.whole_batch(datamodule.records("train")[:1])
    assert (batch["inputs"]["masks"] == 8).all()
    assert set(next(iter(datamodule.stored_dataloader(datamodule.records("train"))))["inputs"]) == {"features"}


def test_training_batches_come_without_photos_on_the_grid_of_the_features(make: Make):
    datamodule = make(("early",))
    for batch in run_epoch(datamodule, 0):
        assert set(batch) == {"id", "tags", "inputs", "valid"}
        assert set(batch["inputs"]) == {"masks", "features"}
        assert batch["inputs"]["features"].dtype == torch.float16
        assert (batch["inputs"]["masks"].sum(1)[batch["valid"]] == 1).all()
        assert (batch["inputs"]["masks"][:, 8][batch["valid"]] == 1).all()
        assert datamodule.on_after_batch_transfer(dict(batch), 0).keys() == batch.keys()


def test_the_order_of_training_images_follows_the_seed_and_the_epoch(make: Make):
    def ids(seed: int, epoch: int) -> list[Any]:
        datamodule = make(task={"grid_crop": GridCrop(4, 0.5)}, seed=seed, batch_size=4)
        return [batch["id"] for batch in run_epoch(datamodule, epoch)]

    assert ids(0, 0) == ids(0, 0)
    for orders in ({tuple(ids(0, epoch)[0]) for epoch in range(6)}, {tuple(ids(seed, 0)[0]) for seed in range(6)}):
        assert len(orders) > 2


def test_training_crops_are_cut_as_the_task_says_with_the_seed_of_the_data(make: Make):
    crop = GridCrop(4, 0.5, 2)
    dataset = make(task={"grid_crop": crop}, seed=5).train_dataloader().dataset
    assert (dataset.crop, dataset.seed) == (crop, 5)


def test_the_truth_gives_labels_of_training_cells(make: Make):
    datamodule = make(inputs={"masks": "truth"})
    batches = run_epoch(datamodule, 0)
    assert {name for batch in batches for name in batch["id"]} == {f"2007_00000{k}" for k in range(1, 5)}
    shares = torch.cat([batch["inputs"]["masks"].flatten(2).sum((0, 2))[None] for batch in batches]).sum(0)
    assert {int(value) for value in shares.nonzero()} == {0, 8, 12, 7, 6, 15}


def test_stored_batches_come_in_order_and_hold_features_alone(make: Make):
    datamodule = make(("early",), predict_batch_size=3)
    records = datamodule.records("train")
    first, second = datamodule.stored_dataloader(records)
    assert first["id"] + second["id"] == [record.id for record in records]
    assert len(first["id"]) == 3
    assert set(first["inputs"]) == {"features"}
    assert not {"pixels", "image"} & set(first)
    assert first["inputs"]["features"].shape == (3, 1, 16, 16)
    assert first["valid"].sum((1, 2)).tolist() == [12 * 16, 16 * 12, 10 * 14]
    assert first["inputs"]["features"][2, 0, 0, 0] == 2
    assert datamodule.stored_dataloader(records[1:2]).dataset[0]["id"] == records[1].id


def test_validation_and_prediction_read_the_features_of_their_split(make: Make):
    datamodule = make(("early",))
    train, val = datamodule.predict_dataloader()
    seen = {name: float(value) for loader in (train, val) for one in loader
            for name, value in zip(one["id"], one["inputs"]["features"][:, 0, 0, 0], strict=True)}  # fmt: skip
    assert seen == {**{f"2007_00000{k}": k - 1.0 for k in range(1, 5)}, "2007_000005": 5.0, "2007_000006": 6.0}
    assert [float(one["inputs"]["features"][0, 0, 0, 0]) for one in datamodule.val_dataloader()] == [5.0, 6.0]


def test_an_input_of_training_images_alone_is_no_input_of_others(make: Make):
    datamodule = make(reads={"features": Read(FEATURES, predict=True)})
    train, val = datamodule.predict_dataloader()
    assert all("features" in one["inputs"] for one in train)
    assert all("inputs" not in one for one in (*val, *datamodule.val_dataloader()))


@pytest.mark.parametrize(
    ("divisor", "sizes", "first"),
    [(1, {(48, 56), (48, 48)}, (56, 40)), (None, {(64, 64)}, (64, 64)), (16, {(48, 64), (48, 48)}, (64, 48))],
)
def test_whole_images_are_padded_to_what_the_task_divides_by(
    make: Make, divisor: int | None, sizes: set[tuple[int, int]], first: tuple[int, int]
):
    datamodule = make(task={"canvas_divisor": divisor} if divisor else {})
    if divisor is None:
        del datamodule.trainer.lightning_module.canvas_divisor
    assert {tuple(one["pixels"].shape[-2:]) for one in datamodule.val_dataloader()} == sizes
    whole = datamodule.whole_batch(datamodule.records("train")[2:3])
    assert tuple(whole["pixels"].shape[-2:]) == first
    if divisor == 1:
        assert whole["inputs"]["features"].shape[-2:] == (14, 10)
        assert whole["valid"].all()


def test_a_source_gives_channels_one_after_another(tmp_path: Path):
    path = tmp_path / "a.npy"
    arrays.write_features(path, layers(0, (8, 8))[0])
    source = Source(KINDS["features"], lambda name: tmp_path / f"{name}.npy")
    record = type("Record", (), {"id": "a"})
    assert source.features(record)[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    chosen = source._replace(channels=(slice(4, 6), slice(1, 2)))
    assert chosen.features(record)[:, 0, 0].tolist() == [40, 50, 10]
