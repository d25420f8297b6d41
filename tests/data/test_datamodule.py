"""Order, randomness, splits and normalisation of the batches that a datamodule makes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.crops import FiveCrop
from dhr_lightning.data.datamodule import EpochSampler, WSSSDataModule
from dhr_lightning.data.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from dhr_lightning.data.run_inputs import NO_METHOD
from dhr_lightning.data.sample import Batch
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.errors import ConfigError, TagError
from dhr_lightning.models.cards import WeightsCard
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


@pytest.fixture
def make(tiny_voc: Path, tmp_path: Path) -> Make:
    def build(*arguments: Any, **options: Any) -> WSSSDataModule:
        return make_datamodule(tiny_voc, tmp_path, *arguments, **options)

    return build


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert equal(one, other)


def differ(first: list[Batch], second: list[Batch]) -> bool:
    return any(
        a["pixels"].shape != b["pixels"].shape or not torch.equal(a["pixels"], b["pixels"])
        for a, b in zip(first, second, strict=True)
    )


# torch advises against more workers than cores; the test must also run on a single core
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_do_not_change_the_batches(make: Make):
    reads = {"masks": Read(MASKS, fit=True), "features": Read(FEATURES, fit=True), "cam": Read(("cam",), fit=True)}
    inputs = {"masks": "crf/1a2b/mask", "features": "uss/1a2b/features", "cam": "cam/1a2b/cam"}
    alone, helped = (make(spec_of(reads), inputs=inputs, num_workers=workers) for workers in (0, 2))
    put_masks(alone, "crf/1a2b/mask")
    put_features(alone)
    put_cams(alone)
    assert set(run_epoch(alone, 0)[0]["inputs"]) == {"masks", "features", "cam"}
    for epoch in (0, 1):
        assert_equal(run_epoch(alone, epoch), run_epoch(helped, epoch))
    assert_equal(list(alone.val_dataloader()), list(helped.val_dataloader()))


def test_an_epoch_repeats_exactly_and_the_next_one_differs(make: Make):
    first = run_epoch(make(), 3)
    torch.manual_seed(12345)
    np.random.seed(1)
    assert_equal(run_epoch(make(), 3), first)
    assert differ(run_epoch(make(), 4), first)
    assert differ(run_epoch(make(seed=1), 3), first)


def test_order_changes_with_the_epoch_and_every_image_is_seen(make: Make):
    orders = [[name for batch in run_epoch(make(), epoch) for name in batch["id"]] for epoch in range(6)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) > 2


def test_the_sampler_hands_over_epoch_and_index():
    sampler = EpochSampler(range(5), num_replicas=1, rank=0, shuffle=True, seed=0)
    sampler.set_epoch(7)
    keys = list(sampler)
    assert {epoch for epoch, _ in keys} == {7}
    assert sorted(index for _, index in keys) == list(range(5))


def test_ranks_share_the_images(make: Make):
    seen = [name for rank in (0, 1) for batch in run_epoch(make(ranks=(rank, 2)), 0) for name in batch["id"]]
    assert Counter(seen) == Counter(record.id for record in make().records("train"))


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 2]), (3, [3]), (4, [4]), (16, [4])])
def test_a_short_last_batch_is_dropped_unless_it_is_the_only_one(make: Make, batch_size: int, sizes: list[int]):
    assert [len(batch["id"]) for batch in run_epoch(make(batch_size=batch_size), 0)] == sizes


def test_without_augmentation_no_image_is_dropped_or_cut(make: Make):
    batches = run_epoch(make(task={"augment": False}, batch_size=3), 0)
    assert [len(batch["id"]) for batch in batches] == [3, 1]
    for batch in batches:
        for geometry, valid in zip(batch["geometry"], batch["valid"], strict=True):
            assert geometry.scale == (1.0, 1.0)
            assert valid.sum() == geometry.size[0] * geometry.size[1]
        assert all(length % 32 == 0 for length in batch["pixels"].shape[-2:])


def test_training_crops_have_the_asked_size_and_no_ground_truth(make: Make):
    for batch in run_epoch(make(), 0):
        assert batch["pixels"].shape == (2, 3, 32, 32)
        assert not {"gt_mask", "inputs", "neighbour"} & set(batch)


def test_images_that_are_already_written_are_skipped(make: Make):
    datamodule = make(spec_of(None, "train", "val"))
    datamodule.written = frozenset({("train", "2007_000002"), ("val", "2007_000001"), ("val", "2007_000006")})
    names = [[name for batch in loader for name in batch["id"]] for loader in datamodule.predict_dataloader()]
    assert names == [["2007_000001", "2007_000003", "2007_000004"], ["2007_000005"]]


def test_validation_has_ground_truth_in_whole_images(make: Make):
    (batch,) = make().val_dataloader()
    assert batch["id"] == ["2007_000005", "2007_000006"]
    assert batch["pixels"].shape == (2, 3, 64, 64)
    assert (batch["gt_mask"][~batch["valid"]] == 255).all()
    assert set(batch["gt_mask"].unique().tolist()) == {0, 7, 8, 12, 255}


def test_normalisation_is_that_of_imagenet_and_padding_is_zero():
    pixels = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[1, :, 4:] = False
    image = normalize(pixels, valid)
    mean, std = (np.array(values)[:, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for index in range(2):
        chosen = image[index][:, valid[index]].numpy()
        expected = (pixels[index][:, valid[index]].numpy() / 255 - mean) / std
        np.testing.assert_allclose(chosen, expected, atol=1e-5)
    assert not image[1, :, :, 4:].any()
    assert image.dtype == torch.float32


def test_the_batch_is_normalised_for_the_weights_of_the_task(make: Make):
    card = WeightsCard((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    datamodule = make(task={"card": card, "five_crop": FiveCrop(24)})
    datamodule.set_neighbours(torch.arange(20).roll(5)[:, None])
    (batch, *_) = run_epoch(datamodule, 0)
    arrived = datamodule.on_after_batch_transfer(batch, 0)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.mean, card.std))
    for name, pixels in (("image", "pixels"), ("neighbour_image", "neighbour")):
        torch.testing.assert_close(arrived[name], (batch[pixels] / 255 - mean) / std)


def test_the_batch_is_normalised_on_arrival(make: Make):
    datamodule = make(task={"five_crop": FiveCrop(24)})
    datamodule.set_neighbours(torch.arange(20).roll(5)[:, None])  # the same place of the image before
    (batch, *_) = run_epoch(datamodule, 0)
    arrived = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(arrived["image"], normalize(batch["pixels"], batch["valid"]))
    everywhere = torch.ones(2, 24, 24, dtype=torch.bool)
    assert torch.equal(arrived["neighbour_image"], normalize(batch["neighbour"], everywhere))
    assert arrived["neighbour_image"].shape == arrived["image"].shape == (2, 3, 24, 24)
    assert datamodule.on_after_batch_transfer({"other": 1}, 0) == {"other": 1}


def test_neighbours_found_after_the_loader_was_made_reach_its_batches(make: Make):
    datamodule = make(task={"five_crop": FiveCrop(24)})
    loader = datamodule.train_dataloader()
    assert "neighbour" not in next(iter(loader))
    datamodule.set_neighbours(torch.arange(20).roll(5)[:, None])
    assert "neighbour" in next(iter(loader))


def test_all_crops_come_in_order_and_as_in_training(make: Make):
    crop = FiveCrop(24)
    datamodule = make(task={"five_crop": crop}, batch_size=3)
    records = datamodule.records("train")
    names = [name for batch in datamodule.crops_dataloader(crop, records) for name in batch["id"]]
    assert names == [record.id for record in records for _ in range(5)]
    arrived = [datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.crops_dataloader(crop, records)]
    every = torch.cat([batch["image"] for batch in arrived])  # (20, 3, 24, 24)
    seen = 0
    for epoch in range(3):
        for batch in run_epoch(datamodule, epoch):
            for image in datamodule.on_after_batch_transfer(batch, 0)["image"]:
                assert (every == image).all((1, 2, 3)).any()
                seen += 1
    assert seen == 3 * 18  # of 20, the last batch is not full


def test_the_class_list_is_that_of_the_dataset(make: Make, voc_classes: ClassSet):
    datamodule = make()
    assert datamodule.class_names == list(voc_classes.names)
    assert datamodule.has_background
    assert datamodule.store.root == datamodule.workspace / "artifacts"


def test_untagged_images_follow_the_policy(make: Make, voc_copy: Path):
    (voc_copy / "Annotations" / "2007_000001.xml").unlink()

    (voc_copy / "Annotations" / "2007_000005.xml").unlink()

    def count(policy: str, split: str = "train") -> int:
        datamodule = make(untagged=policy)
        datamodule.root = voc_copy
        return len(datamodule.records(split))

    assert count("drop") == 3
    assert count("background") == 4
    assert [count(policy, "val") for policy in ("drop", "background", "error")] == [2, 2, 2]
    with pytest.raises(TagError, match="2007_000001"):
        count("error")
    with pytest.raises(ConfigError, match="skip"):
        count("skip")


def test_the_built_in_dataset_is_made_with_its_options(tmp_path: Path):
    datamodule = WSSSDataModule(root=str(tmp_path / "world"), workspace=str(tmp_path), options={"train": 2, "val": 1})
    datamodule.prepare_data()
    assert [len(datamodule.records(split)) for split in ("train", "val")] == [2, 1]


def test_a_dataset_without_generator_is_left_alone(make: Make):
    make().prepare_data()


def test_settings_of_the_augmentation_are_handed_on(make: Make):
    settings = {
        "crop_size": 24,
        "scale": (0.5, 1.5),
        "flip": 0.25,
        "jitter": (0.1, 0, 0, 0),
        "interpolation": "bicubic",
    }
    assert make(**settings).augmentation == Augmentation(**settings)


def test_bad_augmentation_is_refused_at_once(make: Make):
    with pytest.raises(ConfigError, match="Expected crop_size > 0"):
        make(crop_size=0)


def test_without_a_trainer_nothing_is_asked_for(tiny_voc: Path):
    datamodule = WSSSDataModule("voc", root=str(tiny_voc), batch_size=2, num_workers=0, crop_size=16, scale=(1, 1))
    assert datamodule.spec is NO_METHOD
    assert datamodule.predict_splits == ()
    assert [len(batch["id"]) for batch in datamodule.train_dataloader()] == [2, 2]
