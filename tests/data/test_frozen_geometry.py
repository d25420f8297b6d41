"""A landmark in a photo, its cell of the features and its pixels of the mask lie on top of each other."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_mask
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.dataset import SegmentationDataset, Source
from dhr_lightning.data.files import image_size
from dhr_lightning.data.resizing import cell_grid
from dhr_lightning.data.sample import collate
from dhr_lightning.data.stored import GridCrop, StoredDataset
from dhr_lightning.models.taps import TapEncoder
from tests.data.frozen_samples import VIT, Cells, marked, reader_of, save

CLASSES = ClassSet(("background", "mark"))
SIZES = [(48, 64), (64, 48), (61, 40), (100, 333), (37, 37), (128, 96)]  # (height, width) of photos


def brightest(maps: torch.Tensor) -> tuple[int, int]:
    """Row and column of the largest value."""
    place = int(maps.flatten().argmax())
    return place // maps.shape[1], place % maps.shape[1]


@pytest.mark.parametrize(
    ("size", "side", "cell", "grid"),
    [
        ((375, 500), 576, 16, (27, 36)),
        ((500, 333), 576, 16, (36, 24)),  # 23.98
        ((500, 349), 576, 16, (36, 25)),  # 25.13
        ((300, 300), 100, 14, (7, 7)),
        ((64, 70), 100, 16, (5, 6)),  # 6.25 and 5.49
        ((10, 200), 160, 16, (1, 10)),
    ],
)
def test_sides_are_rounded_to_whole_cells(
    tmp_path: Path, size: tuple[int, int], side: int, cell: int, grid: tuple[int, int]
):
    assert cell_grid(size, side=side, cell=cell, path=tmp_path) == grid
    images = reader_of(Cells(cell), side=side).images(save(tmp_path, Image.new("RGB", size[::-1])))
    assert tuple(images[0].shape) == (3, grid[0] * cell, grid[1] * cell)


@pytest.mark.parametrize("cell", [8, 14, 16])
@pytest.mark.parametrize("size", SIZES)
def test_a_landmark_lies_in_its_cell(tmp_path: Path, size: tuple[int, int], cell: int):
    reader = reader_of(Cells(cell), side=96)
    grid = cell_grid(size, side=96, cell=cell, path=tmp_path)
    for place in {(0, 0), (grid[0] - 1, 0), (grid[0] // 2, grid[1] - 1)}:
        record = save(tmp_path, marked(size, grid, place)[0])
        features = reader.read(record)["features"][0]
        assert tuple(features.shape) == grid == reader.grid(record)
        assert brightest(features) == place
        others = features.clone()
        others[place] = 0
        assert features[place] > 2 * others.max()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("name", "tap"), [(VIT, "block1"), ("small32", "stage3")])
def test_a_landmark_lies_in_its_cell_of_a_real_backbone(tmp_path: Path, name: str, tap: str, flip: bool):
    torch.manual_seed(0)
    reader = reader_of(TapEncoder(name, taps=(tap,)), side=96, flip=flip)
    for size in ((48, 64), (100, 60)):
        grid = cell_grid(size, side=96, cell=16, path=tmp_path)
        black, place = save(tmp_path, Image.new("RGB", size[::-1]), "black"), (1, grid[1] - 2)
        record = save(tmp_path, marked(size, grid, place)[0])
        change = (reader.read(record)["features"].float() - reader.read(black)["features"].float()).norm(dim=0)
        assert tuple(change.shape) == grid
        assert brightest(change) == place


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_has_the_features_of_the_upright_one(tmp_path: Path, orientation: int):
    upright, _ = marked((40, 64), (5, 8), (1, 6))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's transpositions that undo it
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    record, reader = save(tmp_path, stored, exif=exif), reader_of(Cells(8))
    features = reader.read(record)["features"][0]
    assert image_size(record.image) == (40, 64)
    assert tuple(features.shape) == reader.grid(record) == (5, 8)
    assert brightest(features) == (1, 6)


@pytest.fixture
def stored(tmp_path: Path) -> StoredDataset:
    """Photos with a landmark, its features and its masks; cells are no whole number of pixels."""
    records, grids = [], {}
    for index, (size, place) in enumerate(zip(SIZES, [(1, 6), (6, 1), (5, 0), (1, 9), (3, 4), (9, 2)], strict=True)):
        grid = cell_grid(size, side=96, cell=8, path=tmp_path)
        photo, mask = marked(size, grid, place)
        record = save(tmp_path, photo, str(index))
        write_mask(tmp_path / f"{index}.mask", mask, CLASSES.palette)
        write_features(tmp_path / f"{index}.npy", reader_of(Cells(8), side=96).read(record)["features"].numpy())
        records.append(record)
        grids[record.id] = grid
    sources = {
        "features": Source(KINDS["features"], lambda name: tmp_path / f"{name}.npy"),
        "masks": Source(KINDS["mask"], lambda name: tmp_path / f"{name}.mask"),
    }
    return StoredDataset(records, CLASSES, sources, GridCrop())


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("mirror", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("cells", [None, 5])
def test_features_and_labels_of_a_crop_show_the_landmark_in_one_place(
    stored: StoredDataset, cells: int | None, mirror: float, scale: int
):
    whole = partial(StoredDataset, stored.records, CLASSES, stored.inputs)
    crops, seen = whole(GridCrop(cells, mirror, scale)), 0
    for epoch in range(1 if cells is None else 6):
        for index in range(len(crops)):
            sample = crops[epoch, index]
            features, mark = sample["features"]["features"][0].float(), sample["shares"]["masks"][1]
            rows, columns = features.shape
            assert mark.shape == (rows * scale, columns * scale)
            means = mark.reshape(rows, scale, columns, scale).mean((1, 3))
            assert (features.max() > 0.5) == (means.max() > 0.5)
            if features.max() > 0.5:
                seen += 1
                assert brightest(features) == brightest(means)
    assert seen >= 4


def test_whole_photos_masks_and_features_share_a_canvas_without_padding(stored: StoredDataset):
    dataset = SegmentationDataset(stored.records, CLASSES, inputs=stored.inputs)
    for index, (height, width) in enumerate(SIZES):
        batch = collate([dataset[index]], divisor=1)
        features, mask = batch["inputs"]["features"][0, 0], batch["inputs"]["masks"][0]
        assert mask.shape == (height, width)
        assert batch["valid"].all()
        rows, columns = np.nonzero(mask.numpy() == 1)
        middle = (rows.mean() + 0.5) / height * features.shape[0], (columns.mean() + 0.5) / width * features.shape[1]
        assert tuple(int(one) for one in middle) == brightest(features)
