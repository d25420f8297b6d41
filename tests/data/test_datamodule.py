from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch

from dhr_lightning.artifacts.files import write_features
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.crops import FiveCrop
from dhr_lightning.data.datamodule import EpochSampler, Needs, WSSSDataModule
from dhr_lightning.data.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from dhr_lightning.data.sample import Batch
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.errors import ArtifactError, ConfigError, TagError

Make = Callable[..., WSSSDataModule]


@pytest.fixture
def make(tiny_voc: Path, tmp_path: Path) -> Make:
    """A datamodule on `tiny_voc` whose task has the given needs."""

    def build(needs: Needs | None = None, *, rank: int = 0, ranks: int = 1, **options: Any) -> WSSSDataModule:
        settings = {"batch_size": 2, "num_workers": 0, "crop_size": 32, "scale": (0.5, 2.0), **options}
        datamodule = WSSSDataModule("voc", root=str(tiny_voc), workspace=str(tmp_path), **settings)
        datamodule.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(needs=needs or Needs()), world_size=ranks, global_rank=rank, training=True
        )
        return datamodule

    return build


def put_masks(datamodule: WSSSDataModule, kind: str, split: str = "train", *, value: int = 8) -> None:
    """Write one finished kind of masks, all of one value."""
    records = datamodule.records(split)
    identity = Manifest.create(kind, "voc", split, ids=[record.id for record in records], settings={})
    sizes = [datamodule.dataset_of(records)[index]["geometry"].size for index in range(len(records))]
    with datamodule.writer(identity, owner=True) as writer:
        for record, size in zip(records, sizes, strict=True):
            writer.write(record.id, np.full(size, value, np.uint8))
        writer.seal()


def put_features(datamodule: WSSSDataModule) -> None:
    records = datamodule.records("train")
    identity = Manifest.create("uss", "voc", "train", ids=[record.id for record in records], settings={})
    with datamodule.writer(identity, owner=True) as writer:
        for index, record in enumerate(records):
            writer.write(record.id, np.full((3, 6, 8), index + 1, np.float16))
        writer.seal()


def run_epoch(datamodule: WSSSDataModule, epoch: int) -> list[Batch]:
    loader = datamodule.train_dataloader()
    _set_sampler_epoch(loader, epoch)  # as Lightning does it
    return list(loader)


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert set(one) == set(other)
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def differ(first: list[Batch], second: list[Batch]) -> bool:
    return any(
        a["pixels"].shape != b["pixels"].shape or not torch.equal(a["pixels"], b["pixels"])
        for a, b in zip(first, second, strict=True)
    )


# torch advises against more workers than cores; the test must also run on a single core
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_do_not_change_the_batches(make: Make):
    needs = Needs(train_masks="base_mask", train_features=True)
    alone, helped = make(needs, num_workers=0), make(needs, num_workers=2)
    put_masks(alone, "base_mask")
    put_features(alone)
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
    seen = [name for rank in (0, 1) for batch in run_epoch(make(rank=rank, ranks=2), 0) for name in batch["id"]]
    assert Counter(seen) == Counter(record.id for record in make().records("train"))


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2, 2]), (3, [3]), (4, [4]), (16, [4])])
def test_a_short_last_batch_is_dropped_unless_it_is_the_only_one(make: Make, batch_size: int, sizes: list[int]):
    assert [len(batch["id"]) for batch in run_epoch(make(batch_size=batch_size), 0)] == sizes


def test_without_augmentation_no_image_is_dropped_or_cut(make: Make):
    needs = Needs(augment=False)
    batches = run_epoch(make(needs, batch_size=3), 0)
    assert [len(batch["id"]) for batch in batches] == [3, 1]
    for batch in batches:
        for geometry, valid in zip(batch["geometry"], batch["valid"], strict=True):
            assert geometry.scale == (1.0, 1.0)
            assert valid.sum() == geometry.size[0] * geometry.size[1]
        assert all(length % 32 == 0 for length in batch["pixels"].shape[-2:])


def test_training_crops_have_the_asked_size_and_no_ground_truth(make: Make):
    for batch in run_epoch(make(), 0):
        assert batch["pixels"].shape == (2, 3, 32, 32)
        assert not {"truth", "mask", "uss", "neighbour"} & set(batch)


def test_masks_and_features_come_only_where_asked_for(make: Make):
    needs = Needs(
        train_masks="base_mask", predict_splits=("train", "val"), predict_masks="mars_mask", predict_features=True
    )
    datamodule = make(needs)
    put_masks(datamodule, "base_mask", value=8)
    put_masks(datamodule, "mars_mask", value=12)
    put_features(datamodule)
    for batch in run_epoch(datamodule, 0):
        assert set(batch["mask"].unique().tolist()) <= {8, 255}
        assert "uss" not in batch
    train, val = (list(loader) for loader in datamodule.predict_dataloader())
    for batch in train:
        assert batch["mask"][batch["valid"]].unique().tolist() == [12]
        assert (batch["mask"][~batch["valid"]] == 255).all()
        assert "uss" in batch
        assert "truth" not in batch
    assert not {"mask", "uss", "truth"} & set(val[0])
    refreshed = list(datamodule.refresh_dataloader(datamodule.records("train")[:2]))
    assert [name for batch in refreshed for name in batch["id"]] == ["2007_000001", "2007_000002"]
    assert all(batch["mask"][batch["valid"]].unique().tolist() == [12] for batch in refreshed)


@pytest.mark.parametrize("augment", [True, False])
def test_whole_images_share_a_batch_only_with_their_canvas(make: Make, tiny_voc: Path, augment: bool):
    """Sizes of 64x48, 48x64, 40x56 and 64x64 pixels, with features that lie more densely in one of them."""
    datamodule = make(Needs(train_features=True, augment=augment, predict_features=True), predict_batch_size=4)
    put_features(datamodule)
    write_features(datamodule.store.path("uss", "train", "2007_000004"), np.zeros((3, 32, 32), np.float16))
    loaders = [*datamodule.predict_dataloader(), datamodule.val_dataloader()]
    loaders += [] if augment else [datamodule.train_dataloader()]
    loaders.append(datamodule.refresh_dataloader(datamodule.records("train")))
    for loader in loaders:
        for batch in loader:
            own = {tuple(-(-length // 32) * 32 for length in geometry.size) for geometry in batch["geometry"]}
            assert own == {tuple(batch["pixels"].shape[-2:])}
            if "uss" in batch:
                assert (batch["uss"].shape[-1] == 32) == (batch["id"] == ["2007_000004"])
    assert len(loaders[-1]) > 1


def test_images_that_are_already_written_are_skipped(make: Make):
    datamodule = make(Needs(predict_splits=("train", "val")))
    datamodule.skip = frozenset({("train", "2007_000002"), ("val", "2007_000001"), ("val", "2007_000006")})
    names = [[name for batch in loader for name in batch["id"]] for loader in datamodule.predict_dataloader()]
    assert names == [["2007_000001", "2007_000003", "2007_000004"], ["2007_000005"]]


def test_validation_has_ground_truth_in_whole_images(make: Make):
    (batch,) = make().val_dataloader()
    assert batch["id"] == ["2007_000005", "2007_000006"]
    assert batch["pixels"].shape == (2, 3, 64, 64)
    assert (batch["truth"][~batch["valid"]] == 255).all()
    assert set(batch["truth"].unique().tolist()) == {0, 7, 8, 12, 255}


def test_supervised_training_takes_the_ground_truth_as_mask(make: Make):
    datamodule = make(Needs(train_masks="truth"))
    (batch, *_) = run_epoch(datamodule, 0)
    assert "mask" not in batch
    batch = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(batch["mask"], batch["truth"])
    datamodule.trainer.training = False
    assert "mask" not in datamodule.on_after_batch_transfer(next(iter(datamodule.val_dataloader())), 0)
    weak = make()
    (batch,) = weak.val_dataloader()
    assert "mask" not in weak.on_after_batch_transfer(batch, 0)


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


def test_the_batch_is_normalised_on_arrival(make: Make):
    datamodule = make(Needs(five_crop=FiveCrop(24)))
    datamodule.set_neighbours(torch.arange(20).roll(5)[:, None])  # the same place of the image before
    (batch, *_) = run_epoch(datamodule, 0)
    arrived = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(arrived["image"], normalize(batch["pixels"], batch["valid"]))
    everywhere = torch.ones(2, 24, 24, dtype=torch.bool)
    assert torch.equal(arrived["neighbour_image"], normalize(batch["neighbour"], everywhere))
    assert arrived["neighbour_image"].shape == arrived["image"].shape == (2, 3, 24, 24)
    assert datamodule.on_after_batch_transfer({"other": 1}, 0) == {"other": 1}


def test_neighbours_found_after_the_loader_was_made_reach_its_batches(make: Make):
    datamodule = make(Needs(five_crop=FiveCrop(24)))
    loader = datamodule.train_dataloader()
    assert "neighbour" not in next(iter(loader))
    datamodule.set_neighbours(torch.arange(20).roll(5)[:, None])
    assert "neighbour" in next(iter(loader))


def test_all_crops_come_in_order_and_as_in_training(make: Make):
    crop = FiveCrop(24)
    datamodule = make(Needs(five_crop=crop), batch_size=3)
    names = [name for batch in datamodule.crops_dataloader(crop) for name in batch["id"]]
    assert names == [record.id for record in datamodule.records("train") for _ in range(5)]
    arrived = [datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.crops_dataloader(crop)]
    every = torch.cat([batch["image"] for batch in arrived])  # (20, 3, 24, 24)
    seen = 0
    for epoch in range(3):
        for batch in run_epoch(datamodule, epoch):
            for image in datamodule.on_after_batch_transfer(batch, 0)["image"]:
                assert (every == image).all((1, 2, 3)).any()
                seen += 1
    assert seen == 3 * 18  # of 20, the last batch is not full


def test_the_mask_round_travels_with_the_checkpoint(make: Make):
    first, second = make(), make()
    assert first.mask_path("dhr_mask", "train", "a").parent.parent.name == "round_00"
    first.set_mask_round(3)
    second.load_state_dict(first.state_dict())
    assert second.mask_round == 3
    assert second.mask_path("dhr_mask", "train", "a") == second.store.path("dhr_mask/round_03", "train", "a")
    assert second.mask_path("base_mask", "train", "a") == second.store.path("base_mask", "train", "a")


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


def test_weights_of_an_artifact_are_those_it_recorded(make: Make, tmp_path: Path):
    datamodule = make()
    with pytest.raises(ArtifactError, match=r"No finished 'cam' artifact.*make stage1"):
        datamodule.checkpoint_of("cam")
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    folder = datamodule.store.folder("cam", "train")
    folder.mkdir(parents=True)
    made = Manifest.create("cam", "voc", "train", ids=["a"], settings={}, checkpoint=tmp_path / "last.ckpt")
    made.save(folder / "manifest.json")
    assert datamodule.checkpoint_of("cam") == tmp_path / "last.ckpt"
    Manifest.create("cam", "voc", "train", ids=["a"], settings={}).save(folder / "manifest.json")
    with pytest.raises(ArtifactError, match="init_from: null"):
        datamodule.checkpoint_of("cam")


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
    assert datamodule.needs == Needs()
    assert [len(batch["id"]) for batch in datamodule.train_dataloader()] == [2, 2]
