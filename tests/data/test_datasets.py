from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_cam, write_mask
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.dataset import SegmentationDataset, Source
from dhr_lightning.data.files import read_image, read_truth
from dhr_lightning.data.sample import GridMaps, Sample
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.errors import ArtifactError, MaskError
from tests.conftest import COLOURS, TINY_VOC

AUGMENTATION = Augmentation(40, (0.5, 2.0))


def same(first: Sample, second: Sample) -> bool:
    assert set(first) == set(second)
    return all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


@pytest.fixture
def masks(tmp_path: Path, train_records: list[Record], voc_classes: ClassSet) -> Callable[[str], Path]:
    """Artifact masks of one value each: the first tag of their image."""
    for record in train_records:
        width, height = read_image(record.image).size
        write_mask(
            tmp_path / f"{record.id}.png", np.full((height, width), record.tags[0], np.uint8), voc_classes.palette
        )
    return lambda image_id: tmp_path / f"{image_id}.png"


def test_a_whole_image_comes_as_it_is_on_disk(train_records: list[Record], voc_classes: ClassSet):
    dataset = SegmentationDataset(train_records, voc_classes, gt_mask=True)
    assert len(dataset) == 4
    for index, record in enumerate(train_records):
        sample = dataset[index]
        assert set(sample) == {"id", "pixels", "valid", "tags", "geometry", "gt_mask"}
        assert sample["id"] == record.id
        np.testing.assert_array_equal(sample["pixels"].permute(1, 2, 0).numpy(), np.array(read_image(record.image)))
        assert record.gt_mask is not None
        np.testing.assert_array_equal(sample["gt_mask"].numpy(), read_truth(record.gt_mask))
        assert (sample["tags"].nonzero()[:, 0] + 1).tolist() == list(record.tags)
        for square in TINY_VOC["train"][record.id][1]:
            middle = sample["pixels"][:, square.top + square.side // 2, square.left + square.side // 2]
            assert (middle.int() - torch.tensor(COLOURS[square.name])).abs().max() < 25


@pytest.mark.parametrize("augmentation", [None, AUGMENTATION], ids=["whole", "crop"])
def test_ground_truth_is_absent_unless_asked_for(
    train_records: list[Record], voc_classes: ClassSet, augmentation: Augmentation | None
):
    sample = SegmentationDataset(train_records, voc_classes, augmentation=augmentation)[0]
    assert set(sample) == {"id", "pixels", "valid", "tags", "geometry"}


def test_a_record_without_ground_truth_gives_none(train_records: list[Record], voc_classes: ClassSet):
    record = Record(train_records[0].id, train_records[0].image, train_records[0].tags)
    assert "gt_mask" not in SegmentationDataset([record], voc_classes, gt_mask=True)[0]


def test_seed_epoch_and_index_decide_a_sample(train_records: list[Record], voc_classes: ClassSet):
    def make(seed: int) -> SegmentationDataset:
        return SegmentationDataset(train_records, voc_classes, augmentation=AUGMENTATION, gt_mask=True, seed=seed)

    dataset = make(0)
    first = dataset[3, 1]
    torch.manual_seed(99)
    dataset[0, 0]
    assert same(dataset[3, 1], first)
    assert same(make(0)[3, 1], first)
    assert not same(dataset[4, 1], first)
    assert not same(make(1)[3, 1], first)
    assert dataset[3, 0]["geometry"].scale != first["geometry"].scale
    assert same(dataset[1], dataset[0, 1])


def test_epochs_and_indices_do_not_share_their_draws(train_records: list[Record], voc_classes: ClassSet):
    dataset = SegmentationDataset([train_records[0]] * 8, voc_classes, augmentation=AUGMENTATION)
    geometries = {dataset[epoch, index]["geometry"] for epoch in range(8) for index in range(8)}
    assert len(geometries) > 60


def test_whole_images_do_not_depend_on_the_epoch(train_records: list[Record], voc_classes: ClassSet):
    dataset = SegmentationDataset(train_records, voc_classes, gt_mask=True)
    assert same(dataset[0, 2], dataset[7, 2])


def mask_input(path_of: Callable[[str], Path], kind: str = "mask") -> dict[str, Source]:
    return {"masks": Source(KINDS[kind], path_of)}


@pytest.mark.parametrize("kind", ["mask", "label", "prediction"])
def test_masks_to_train_on_come_from_the_artifact(
    train_records: list[Record], voc_classes: ClassSet, masks: Callable[[str], Path], kind: str
):
    inputs = mask_input(masks, kind)
    whole = SegmentationDataset(train_records, voc_classes, inputs=inputs)
    crops = SegmentationDataset(train_records, voc_classes, inputs=inputs, augmentation=AUGMENTATION)
    for index, record in enumerate(train_records):
        assert set(whole[index]) == {"id", "pixels", "valid", "tags", "geometry", "inputs"}
        assert whole[index]["inputs"]["masks"].unique().tolist() == [record.tags[0]]
        sample = crops[0, index]
        assert sample["inputs"]["masks"][sample["valid"]].unique().tolist() == [record.tags[0]]
        assert (sample["inputs"]["masks"][~sample["valid"]] == 255).all()


def test_ports_are_kept_apart_from_each_other_and_from_the_ground_truth(
    train_records: list[Record], voc_classes: ClassSet, masks: Callable[[str], Path], tmp_path: Path
):
    write_mask(tmp_path / "other.png", np.full((48, 64), 5, np.uint8), voc_classes.palette)
    write_features(tmp_path / "grid.npy", np.ones((2, 3, 4), np.float16))
    inputs = {
        "features": Source(KINDS["features"], lambda _: tmp_path / "grid.npy"),
        "masks": Source(KINDS["mask"], masks),
        "other": Source(KINDS["label"], lambda _: tmp_path / "other.png"),
    }
    sample = SegmentationDataset(train_records, voc_classes, inputs=inputs, gt_mask=True)[0]
    assert set(sample["inputs"]) == {"features", "masks", "other"}
    assert sample["inputs"]["masks"].unique().tolist() == [8]
    assert sample["inputs"]["other"].unique().tolist() == [5]
    assert sample["gt_mask"].unique().tolist() == [0, 8, 255]


def test_a_mask_that_does_not_fit_its_image_is_refused(
    train_records: list[Record], voc_classes: ClassSet, masks: Callable[[str], Path]
):
    swapped = SegmentationDataset(train_records, voc_classes, inputs=mask_input(lambda _: masks("2007_000001")))
    assert "masks" in swapped[0]["inputs"]
    with pytest.raises(MaskError, match=r"2007_000001\.png is 64x48 pixels, but its image is 48x64"):
        swapped[1]


def test_a_mask_of_other_classes_is_refused(
    train_records: list[Record], voc_classes: ClassSet, masks: Callable[[str], Path]
):
    write_mask(masks("2007_000001"), np.full((48, 64), 21, np.uint8), voc_classes.palette)
    with pytest.raises(MaskError, match="21 classes and 255: 21"):
        SegmentationDataset(train_records, voc_classes, inputs=mask_input(masks))[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_missing_file_is_named(train_records: list[Record], voc_classes: ClassSet, tmp_path: Path, kind: str):
    inputs = {"port": Source(KINDS[kind], lambda _: tmp_path / "gone.x")}
    with pytest.raises(ArtifactError, match=r"gone\.x"):
        SegmentationDataset(train_records, voc_classes, inputs=inputs)[0]


@pytest.mark.parametrize("augmentation", [None, AUGMENTATION], ids=["whole", "crop"])
def test_features_are_those_of_the_whole_image(
    train_records: list[Record], voc_classes: ClassSet, tmp_path: Path, augmentation: Augmentation | None
):
    features = np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float16)
    write_features(tmp_path / "grid.npy", features)
    inputs = {"features": Source(KINDS["features"], lambda _: tmp_path / "grid.npy")}
    sample = SegmentationDataset(train_records, voc_classes, inputs=inputs, augmentation=augmentation)[0]
    found = sample["inputs"]["features"]
    assert isinstance(found, GridMaps)
    assert (found.geometry, found.maps.dtype) == ("sampled", torch.float32)
    np.testing.assert_array_equal(found.maps.numpy(), features.astype(np.float32))


@pytest.mark.parametrize(
    ("tags", "keys", "rows"),
    [
        ((8, 12), [8, 12], [0, 1]),
        ((8, 12), [12, 8], [1, 0]),  # in the order of the tags, whatever that of the file
        ((12,), [3, 8, 12], [2]),  # classes of the file that are no tags are left out
        ((3, 8, 12), [12, 3], [1, None, 0]),  # a tag that the file lacks has no score anywhere
        ((8,), [], [None]),
        ((), [8, 12], []),
    ],
)
def test_cams_are_those_of_the_tags_in_their_order(
    train_records: list[Record], voc_classes: ClassSet, tmp_path: Path,
    tags: tuple[int, ...], keys: list[int], rows: list[int | None],
):  # fmt: skip
    cam = np.random.default_rng(0).uniform(0.1, 1, (len(keys), 3, 4)).astype(np.float16)
    write_cam(tmp_path / "one.npz", np.array(keys, np.int16), cam)
    record = Record("one", train_records[0].image, tags)
    inputs = {"cam": Source(KINDS["cam"], lambda name: tmp_path / f"{name}.npz")}
    found = SegmentationDataset([record], voc_classes, inputs=inputs)[0]["inputs"]["cam"]
    assert found.geometry == "bilinear"
    assert (found.maps.dtype, found.maps.shape) == (torch.float32, (len(tags), 3, 4))
    for one, row in zip(found.maps.numpy(), rows, strict=True):
        np.testing.assert_array_equal(one, np.zeros((3, 4)) if row is None else cam[row].astype(np.float32))
