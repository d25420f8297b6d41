"""The estimate of disk space against files that are really written."""

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_cam, write_mask
from dhr_lightning.data.catalog import Record, voc_palette
from dhr_lightning.inspection.scan import Scan
from dhr_lightning.inspection.space import ArtifactPlan, estimate_bytes, folder_bytes, space_findings
from dhr_lightning.progress import human

SIZES = {"a": ((500, 375), (8,)), "b": ((333, 500), (8, 12, 15)), "c": ((81, 61), (1, 2))}
PLAN = ArtifactPlan(cam_stride=4, uss_dimension=90, uss_stride=8, rounds=3)


def scans() -> list[Scan]:
    rows = [Scan("train", Record(name, Path(name), tags), size=size) for name, (size, tags) in SIZES.items()]
    return [*rows, Scan("val", Record("v", Path("v"), (1,)), size=(500, 375)), Scan("val", rows[0].record, "broken")]


def test_cams_and_features_are_estimated_to_the_last_percent(tmp_path: Path):
    for name, ((width, height), tags) in SIZES.items():
        cells = (-(-height // 4), -(-width // 4))
        cam = np.random.default_rng(0).random((len(tags), *cells)).astype(np.float16)
        write_cam(tmp_path / f"{name}.npz", np.array(tags, np.int16), cam)
        write_features(tmp_path / f"{name}.npy", np.zeros((90, -(-height // 8), -(-width // 8)), np.float16))
    needed = estimate_bytes(scans(), PLAN)
    for kind, pattern in (("cam", "*.npz"), ("uss", "*.npy")):
        assert needed[kind] == pytest.approx(sum(path.stat().st_size for path in tmp_path.glob(pattern)), rel=0.01)


def test_masks_of_blobs_are_estimated_within_a_factor_of_two(tmp_path: Path):
    rows, columns = np.mgrid[:375, :500]
    mask = np.zeros((375, 500), np.uint8)
    for tag, (y, x) in enumerate([(90, 120), (200, 300), (320, 410)], start=1):
        mask[(rows - y) ** 2 / 2 + (columns - x) ** 2 + 300 * np.sin(rows / 9) < 5000] = tag
    write_mask(tmp_path / "a.png", mask, voc_palette())
    one = estimate_bytes([Scan("val", Record("v", Path("v"), (1,)), size=(500, 375))], PLAN)["masks"] / 2
    assert 0.5 < (tmp_path / "a.png").stat().st_size / one < 2


def test_every_round_and_every_split_counts():
    needed = estimate_bytes(scans(), PLAN)["masks"]
    more = estimate_bytes(scans(), ArtifactPlan(rounds=4))["masks"]
    train = sum(900 + 0.02 * width * height for (width, height), _ in SIZES.values())
    assert more - needed == pytest.approx(train, abs=1)
    assert needed == pytest.approx(6 * train + 2 * (900 + 0.02 * 500 * 375), abs=1)
    fewer = estimate_bytes(scans(), ArtifactPlan(rounds=0, masks=1, predictions=1))["masks"]
    assert fewer == pytest.approx(train + 900 + 0.02 * 500 * 375, abs=1)


@pytest.mark.parametrize(("spare", "level"), [(-1000, "problem"), (1000, "fact")])
def test_a_full_disk_is_a_problem_unless_the_files_are_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, level: str
):
    folder = tmp_path / "artifacts" / "voc" / "cam"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(bytes(5000))
    free = sum(estimate_bytes(scans(), PLAN).values()) - 5000 + spare
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free) if path == folder.parent else None)
    (found,) = space_findings(scans(), PLAN, folder.parent)
    assert (found.level, found.code) == (level, "disk-space")
    assert "D = 90, stride 8" in found.text
    assert "5.0 kB are there" in found.text
    assert ("Free 1.0 kB" in found.advice) == (spare < 0)


def test_a_folder_that_does_not_exist_yet_lies_where_its_parent_lies(tmp_path: Path):
    assert folder_bytes(tmp_path / "no" / "such") == 0
    (found,) = space_findings(scans(), PLAN, tmp_path / "no" / "such")
    assert found.level == "fact"
    assert "0 B are there" in found.text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7.25e12, "7250.0 GB")]
)
def test_sizes_are_readable(size: float, text: str):
    assert human(size) == text
