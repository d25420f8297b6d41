"""Photo, mask, CAM and features stay on top of each other, whatever an augmentation and a batch do to them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_cam, write_mask
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.dataset import SegmentationDataset, Source
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.data.transforms import Augmentation

CLASSES = ClassSet(("background", "mark"))
SIZES = ((64, 96), (96, 64), (80, 80))  # (height, width)
CENTRES = ((20.0, 74.0), (68.0, 22.0), (24.0, 26.0))  # (y, x) of the mark, away from the middle
SPREAD = 5.0  # of the mark, in pixels
CELL = 4  # pixels of the photo in a cell of CAM and features
INPUTS = (("masks", "mask"), ("cam", "cam"), ("features", "features"))


def marked(size: tuple[int, int], centre: tuple[float, float], cell: int = 1) -> np.ndarray:
    """A round mark that fades out, averaged over the cells of an image."""
    rows, columns = (np.arange(length) + 0.5 - middle for length, middle in zip(size, centre, strict=True))
    mark = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * SPREAD**2))
    return mark.reshape(size[0] // cell, cell, size[1] // cell, cell).mean((1, 3))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Photos of one white mark on black, with a mask, a CAM and one feature of it."""
    folder = tmp_path_factory.mktemp("marks")
    for index, (size, centre) in enumerate(zip(SIZES, CENTRES, strict=True)):
        photo = np.rint(255 * marked(size, centre)).astype(np.uint8)
        Image.fromarray(np.stack([photo] * 3, -1)).save(folder / f"{index}.png")
        write_mask(folder / f"{index}_masks", (marked(size, centre) > 0.5).astype(np.uint8), CLASSES.palette)
        grid = marked(size, centre, CELL)[None].astype(np.float16)
        write_cam(folder / f"{index}_cam", np.array([1], np.int16), grid)
        write_features(folder / f"{index}_features", grid)
    return [Record(str(index), folder / f"{index}.png", (1,)) for index in range(len(SIZES))]


def dataset(records: Sequence[Record], augmentation: Augmentation | None) -> SegmentationDataset:
    def path_of(port: str, name: str) -> Path:
        return records[0].image.parent / f"{name}_{port}"

    inputs = {port: Source(KINDS[kind], lambda name, port=port: path_of(port, name)) for port, kind in INPUTS}
    return SegmentationDataset(records, CLASSES, augmentation=augmentation, inputs=inputs)


def centre_of(weight: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """Centre of gravity `(y, x)` in pixels of a canvas, of weights on a grid over it."""
    weight = weight.double()
    rows, columns = ((torch.arange(n) + 0.5) * length / n for n, length in zip(weight.shape, size, strict=True))
    total = weight.sum()
    return float((weight.sum(1) * rows).sum() / total), float((weight.sum(0) * columns).sum() / total)


def check(batch: Batch) -> int:
    """Compare the places of the mark in every image of a batch; returns in how many all of it is there."""
    size, seen = tuple(batch["pixels"].shape[-2:]), 0
    for index, geometry in enumerate(batch["geometry"]):
        photo = batch["pixels"][index].float().mean(0) / 255
        if photo.sum() < 0.985 * 2 * np.pi * SPREAD**2 * geometry.scale[0] * geometry.scale[1]:  # part was cut off
            continue
        seen += 1
        places = {
            "masks": centre_of(batch["inputs"]["masks"][index] == 1, size),
            "cam": centre_of(batch["inputs"]["cam"][index, 0], size),
            "features": centre_of(batch["inputs"]["features"][index, 0], size),
        }
        for port, place in places.items():
            assert place == pytest.approx(centre_of(photo, size), abs=0.75), (port, geometry)
    return seen


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (1.5, 2.0)])
def test_a_mark_stays_in_one_place_through_flip_scale_and_crop(
    records: list[Record], flip: float, scale: tuple[float, float]
):
    augmentation = Augmentation(96, scale, flip, (0, 0, 0, 0))
    crops = dataset(records, augmentation)
    seen = sum(check(collate([crops[epoch, index] for index in range(len(records))])) for epoch in range(24))
    assert seen > 10


def test_a_mark_stays_in_one_place_in_padded_whole_images(records: list[Record]):
    whole = dataset(records, None)
    batch = collate([whole[index] for index in range(len(records))], divisor=32)
    assert check(batch) == len(records)
    height, width = batch["pixels"].shape[-2:]
    for index, centre in enumerate(CENTRES):
        found = [centre_of(batch["inputs"][port][index, 0], (height, width)) for port in ("cam", "features")]
        assert all(one == pytest.approx(centre, abs=0.3) for one in found)


def test_maps_of_a_crop_are_zero_outside_the_photo(records: list[Record]):
    small = dataset(records, Augmentation(96, (0.5, 0.5), 0.5, (0, 0, 0, 0)))
    batch = collate([small[0, index] for index in range(len(records))])
    for index, valid in enumerate(batch["valid"]):
        assert not valid.all()
        assert not batch["inputs"]["cam"][index][:, ~valid].any()
        assert (batch["inputs"]["masks"][index][~valid] == 255).all()
