"""Training samples of stored features: crops at whole cells, labels that follow, and their batches."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_mask
from dhr_lightning.artifacts.kinds import KINDS
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.dataset import Source
from dhr_lightning.data.stored import GridCrop, StoredDataset, StoredSample, collate_stored
from dhr_lightning.errors import ArtifactError, ConfigError, MaskError

CLASSES = ClassSet(("background", "cat", "dog"))
GRIDS = [(4, 6), (6, 4), (3, 3)]
CELL = 4  # pixels of a photo, per side


def numbered(grid: tuple[int, int]) -> np.ndarray:
    """`(2, h, w)` float16: row and column of each cell."""
    return np.stack(np.meshgrid(*(np.arange(length) for length in grid), indexing="ij")).astype(np.float16)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Photos with features that say row and column, and masks whose left half is a cat and whose last row is unknown"""
    found = []
    for index, grid in enumerate(GRIDS):
        height, width = (length * CELL for length in grid)
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (width, height)).save(path)
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 1
        mask[-1] = 255
        for kind in ("masks", "truth"):
            write_mask(tmp_path / f"{index}_{kind}", mask if kind == "masks" else mask[:, ::-1], CLASSES.palette)
        write_features(tmp_path / f"{index}_features", numbered(grid))
        write_features(tmp_path / f"{index}_others", np.full((1, *grid), index, np.float16))
        truth = tmp_path / f"{index}_truth" if index else None
        found.append(Record(str(index), path, (1, 2) if index else (2,), truth))
    return found


def dataset(records: list[Record], crop: GridCrop | None = None, *ports: str, **options: Any) -> StoredDataset:
    """Of features and the ports that are named."""
    folder = records[0].image.parent
    kinds = {"features": "features", "others": "features", "masks": "mask"}

    def path_of(port: str, name: str) -> Path:
        return folder / f"{name}_{port}"

    sources = {port: Source(KINDS[kinds[port]], partial(path_of, port)) for port in ("features", *ports)}
    return StoredDataset(records, CLASSES, sources, crop or GridCrop(), **options)


def test_without_a_crop_a_sample_is_the_whole_image(records: list[Record]):
    samples = dataset(records, None, "masks", "others")
    assert len(samples) == 3
    for index, grid in enumerate(GRIDS):
        sample = samples[index]
        assert set(sample) == {"id", "tags", "features", "shares"}
        assert sample["id"] == str(index)
        assert sample["features"]["features"].dtype == torch.float16
        assert np.array_equal(sample["features"]["features"].numpy(), numbered(grid))
        assert (sample["features"]["others"] == index).all()
        assert sample["tags"].tolist() == ([1, 1] if index else [0, 1])
        assert sample["shares"]["masks"].shape == (3, *grid)


def test_labels_are_shares_of_the_pixels_of_a_cell_and_unknown_ones_count_for_none(records: list[Record]):
    shares = dataset(records, None, "masks")[2]["shares"]["masks"]  # the cat ends in the middle of a cell
    known = torch.tensor([1.0, 1.0, 0.75])[:, None]  # the last row of pixels is unknown
    assert torch.allclose(shares[1], known * torch.tensor([1.0, 0.5, 0.0]))
    assert torch.allclose(shares[0], known * torch.tensor([0.0, 0.5, 1.0]))
    assert not shares[2].any()
    fine = dataset(records, GridCrop(label_scale=2), "masks")[2]["shares"]["masks"]
    assert fine.shape == (3, 6, 6)
    assert torch.allclose(fine[1][:5], torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(5, 6))
    assert torch.allclose(fine[1][5], torch.tensor([0.5, 0.5, 0.5, 0, 0, 0]))


def test_the_ground_truth_may_stand_in_for_masks(records: list[Record]):
    samples = dataset(records, None, truth="masks")
    assert [samples[index]["id"] for index in range(len(samples))] == ["1", "2"]  # the first image has none
    assert samples[0]["shares"]["masks"][1, 0].tolist() == [0, 0, 1, 1]
    assert len(dataset(records, None, "masks")) == 3
    Image.new("RGB", (16, 24)).save(records[1].gt_mask, format="PNG")
    with pytest.raises(MaskError, match="its palette was expanded to colours"):
        _ = samples[0]


def test_a_crop_is_a_box_of_whole_cells_and_its_labels_follow(records: list[Record]):
    steps = set()
    for epoch in range(20):
        for index, grid in enumerate(GRIDS):
            sample = dataset(records, GridCrop(4, 0.5, 2), "masks")[epoch, index]
            rows, columns = sample["features"]["features"]
            assert rows.shape == tuple(min(4, length) for length in grid)
            top, first, last = int(rows[0, 0]), int(columns[0, 0]), int(columns[0, -1])
            assert rows[:, 0].tolist() == list(range(top, top + len(rows)))
            step = 1 if last > first else -1
            steps.add(step)
            assert columns[0].tolist() == list(range(first, last + step, step))
            assert (rows == rows[:, :1]).all()
            assert (columns == columns[:1]).all()
            shares = sample["shares"]["masks"]
            assert shares.shape == (3, 2 * rows.shape[0], 2 * rows.shape[1])
            middle = grid[1] / 2
            cat = [
                float(column + half / 2 < middle) for column in columns[0] for half in ((0, 1) if step > 0 else (1, 0))
            ]
            assert shares[1, 0].tolist() == cat
            known = 0.5 if int(rows[-1, 0]) == grid[0] - 1 else 1.0
            assert torch.allclose(shares.sum(0)[-1], torch.tensor(known))
    assert steps == {1, -1}


def test_every_place_and_both_sides_are_drawn_alike():
    crop, grid = GridCrop(3, 0.25), (5, 9)
    draws = [crop.draw(grid, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    for axis, places in ((0, 3), (1, 7)):
        counts = np.bincount([draw[axis].start for draw in draws], minlength=places)
        assert len(counts) == places
        assert np.abs(counts / 2000 * places - 1).max() < 0.25
        assert all(draw[axis].stop - draw[axis].start == 3 for draw in draws)
    assert np.mean([draw[2] for draw in draws]) == pytest.approx(0.25, abs=0.03)
    drawn = np.array([(rows.start, columns.start, mirrored) for rows, columns, mirrored in draws], float)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.1  # none of the three tells another


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, False), (1.0, True)])
def test_no_mirror_and_always_a_mirror_are_just_that(flip: float, mirrored: bool):
    for seed in range(200):
        rows, columns, drawn = GridCrop(None, flip).draw((4, 6), torch.Generator().manual_seed(seed))
        assert (rows, columns, drawn) == (slice(0, 4), slice(0, 6), mirrored)


def test_a_sample_depends_on_seed_epoch_and_index_only(records: list[Record]):
    crop = GridCrop(2, 0.5)

    def first(seed: int, *key: int) -> list[float]:
        return dataset(records, crop, seed=seed)[key]["features"]["features"][:, 0].flatten().tolist()

    samples = dataset(records, crop, seed=7)
    order = [(epoch, index) for epoch in range(6) for index in range(2)]
    forwards = {key: samples[key]["features"]["features"] for key in order}
    torch.manual_seed(99)
    backwards = {key: samples[key]["features"]["features"] for key in order[::-1]}
    assert all(torch.equal(forwards[key], backwards[key]) for key in order)
    assert len({tuple(first(7, epoch, 0)) for epoch in range(12)}) > 3
    assert len({tuple(first(seed, 0, 0)) for seed in range(12)}) > 3
    same = dataset([records[0]] * 12, crop)
    assert len({tuple(same[0, index]["features"]["features"].flatten().tolist()) for index in range(12)}) > 3
    assert torch.equal(same[3]["features"]["features"], same[0, 3]["features"]["features"])


def test_features_of_other_grids_are_refused(records: list[Record]):
    write_features(records[1].image.parent / "1_others", np.zeros((1, 3, 4), np.float16))
    with pytest.raises(ArtifactError, match=r"The features of 1 lie on different grids: \[\(3, 4\), \(6, 4\)\]"):
        _ = dataset(records, None, "others")[1]


def test_a_mask_of_another_size_is_named(records: list[Record]):
    folder = records[0].image.parent
    write_mask(folder / "0_masks", np.zeros((24, 16), np.uint8), CLASSES.palette)
    with pytest.raises(MaskError, match=r"0_masks is 16x24 pixels, but its image is 24x16"):
        _ = dataset(records, None, "masks")[0]


def test_no_photo_is_read(records: list[Record], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("read a photo")

    monkeypatch.setattr("dhr_lightning.data.files.read_image", refuse)
    monkeypatch.setattr("dhr_lightning.data.dataset.read_image", refuse)
    monkeypatch.setattr(Image.Image, "convert", refuse)
    assert dataset(records, None, "masks")[0]["id"] == "0"


def test_a_batch_is_padded_to_its_largest_grid_and_says_where(records: list[Record]):
    samples = dataset(records, GridCrop(label_scale=2), "masks", "others")
    batch: dict[str, Any] = collate_stored([samples[index] for index in range(3)])
    assert batch["id"] == ["0", "1", "2"]
    assert batch["tags"].tolist() == [[0, 1], [1, 1], [1, 1]]
    assert set(batch["inputs"]) == {"features", "others", "masks"}
    assert batch["inputs"]["features"].shape == (3, 2, 6, 6)
    assert batch["inputs"]["features"].dtype == torch.float16
    assert batch["inputs"]["others"].amax((1, 2, 3)).tolist() == [0, 1, 2]
    assert batch["inputs"]["masks"].shape == (3, 3, 12, 12)
    assert batch["valid"].dtype == torch.bool
    for index, (rows, columns) in enumerate(GRIDS):
        valid = torch.zeros(6, 6, dtype=torch.bool)
        valid[:rows, :columns] = True
        assert torch.equal(batch["valid"][index], valid)
        assert torch.equal(
            batch["inputs"]["features"][index, :, :rows, :columns], samples[index]["features"]["features"]
        )
        assert not batch["inputs"]["features"][index][:, ~valid].any()
        shares = batch["inputs"]["masks"][index]
        assert torch.equal(shares[:, : 2 * rows, : 2 * columns], samples[index]["shares"]["masks"])
        assert not shares[:, ~valid.repeat_interleave(2, 0).repeat_interleave(2, 1)].any()


def test_features_of_a_batch_lie_with_their_channels_last_and_are_those_of_a_plain_stack(records: list[Record]):
    samples = dataset(records, GridCrop(flip=1.0), "others")
    chosen = [samples[index] for index in range(3)]
    for port in ("features", "others"):
        found = collate_stored(chosen)["inputs"][port]
        maps = [sample["features"][port] for sample in chosen]
        expected = torch.stack(
            [torch.nn.functional.pad(one, (0, 6 - one.shape[2], 0, 6 - one.shape[1])) for one in maps]
        )
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        found.fill_(7)  # the samples keep what they have
        assert all(int(one.max()) < 7 for one in maps)


def test_a_batch_is_as_high_and_as_wide_as_its_samples(records: list[Record]):
    samples = dataset(records, None, "masks")
    batch: dict[str, Any] = collate_stored([samples[0], samples[2]])
    assert batch["inputs"]["features"].shape == (2, 2, 4, 6)
    assert batch["valid"].shape == (2, 4, 6)


def test_a_batch_without_masks_holds_none():
    sample = StoredSample(id="a", tags=torch.ones(2), features={"features": torch.ones(1, 2, 3)}, shares={})
    assert set(collate_stored([sample])["inputs"]) == {"features"}


@pytest.mark.parametrize("values", [(0, 0.0, 1), (-1, 0.0, 1), (4, -0.1, 1), (4, 1.1, 1), (4, 0.5, 0)])
def test_crops_that_cannot_be_are_refused(values: tuple[int, float, int]):
    with pytest.raises(ConfigError, match=r"Expected cells >= 1, flip in \[0, 1\] and label_scale >= 1, but got"):
        GridCrop(*values)
    assert GridCrop(1, 1.0, 1).cells == 1
