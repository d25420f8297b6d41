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
from dhr_lightning.inspection.space import folder_bytes, space_findings
from dhr_lightning.pipeline.plan import PlannedStep, make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.pipeline.space import ImageFacts, bytes_by_role, estimate_bytes, feature_stride
from dhr_lightning.progress import human

SIZES = {"a": ((500, 375), (8,)), "b": ((333, 500), (8, 12, 15)), "c": ((81, 61), (1, 2))}
MASKS = ("propagation", "baseline", "mars")  # steps with a mask of each training image, beside the rounds of dhr


def scans() -> list[Scan]:
    rows = [Scan("train", Record(name, Path(name), tags), size=size) for name, (size, tags) in SIZES.items()]
    return [*rows, Scan("val", Record("v", Path("v"), (1,)), size=(500, 375)), Scan("val", rows[0].record, "broken")]


def facts(split: str) -> ImageFacts:
    rows = [one for one in scans() if one.split == split and one.readable]
    return ImageFacts(np.array([one.size for one in rows]), np.array([len(one.record.tags) for one in rows]), len(rows))


@pytest.fixture(scope="module")
def steps() -> list[PlannedStep]:
    return make_plan(
        Request("dhr", data="voc", root="nowhere", overrides=("--uss.dimension=90", "--uss.scales=[1.0]"))
    ).steps


def test_cams_and_features_are_estimated_to_the_last_percent(tmp_path: Path, steps: list[PlannedStep]):
    for name, ((width, height), tags) in SIZES.items():
        cells = (-(-height // 4), -(-width // 4))
        cam = np.random.default_rng(0).random((len(tags), *cells)).astype(np.float16)
        write_cam(tmp_path / f"{name}.npz", np.array(tags, np.int16), cam)
        write_features(tmp_path / f"{name}.npy", np.zeros((90, -(-height // 8), -(-width // 8)), np.float16))
    needed = bytes_by_role(steps, {"train": facts("train")})  # ViT-B/8
    for role, pattern in (("cam", "*.npz"), ("features", "*.npy")):
        assert needed[role] == pytest.approx(sum(path.stat().st_size for path in tmp_path.glob(pattern)), rel=0.01)


def test_masks_of_blobs_are_estimated_within_a_factor_of_two(tmp_path: Path, steps: list[PlannedStep]):
    rows, columns = np.mgrid[:375, :500]
    mask = np.zeros((375, 500), np.uint8)
    for tag, (y, x) in enumerate([(90, 120), (200, 300), (320, 410)], start=1):
        mask[(rows - y) ** 2 / 2 + (columns - x) ** 2 + 300 * np.sin(rows / 9) < 5000] = tag
    write_mask(tmp_path / "a.png", mask, voc_palette())
    (mars,) = (step.identity for step in steps if step.name == "mars")
    one = estimate_bytes(mars, mars.outputs()[0][0], facts("val"))
    assert 0.5 < (tmp_path / "a.png").stat().st_size / one < 2


def test_every_round_and_every_split_counts(steps: list[PlannedStep]):
    train = sum(900 + 0.02 * width * height for (width, height), _ in SIZES.values())
    both = {"train": facts("train"), "val": facts("val")}
    needed = bytes_by_role(steps, both)
    assert needed["mask"] == pytest.approx((len(MASKS) + 6) * train, abs=20)
    assert needed["prediction"] == 2 * (900 + 0.02 * 500 * 375)
    assert bytes_by_role(steps, {"train": facts("train")})["prediction"] == 0  # no such split
    without = [step for step in steps if step.name not in ("mars", "dhr")]
    assert bytes_by_role(without, both)["mask"] == pytest.approx(2 * train, abs=20)


def test_a_sample_stands_for_its_split(steps: list[PlannedStep]):
    few = facts("train")
    many = ImageFacts(few.sizes, few.tags, 100 * few.count)
    for role, size in bytes_by_role(steps, {"train": many}).items():
        assert size == pytest.approx(100 * bytes_by_role(steps, {"train": few})[role], rel=0.01)


def test_frozen_features_are_those_of_the_largest_usual_backbone_on_its_own_grid():
    frozen = make_plan(Request("frozen", data="voc", root="nowhere")).steps
    wide = ImageFacts(np.array([[1000, 500]]), np.array([2]), 10)
    needed = bytes_by_role(frozen, {"train": wide, "val": wide})
    assert needed["features"] == 2 * 10 * (128 + 2 * 3072 * 28 * 14)
    assert needed["cam"] == 10 * (520 + 2 * 2 * 28 * 14)


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [("vit_base_patch8_224.dino", 8), ("vit_small_patch16_224", 16), ("patches", 4), ("mobilenet_v2", 16)],
)
def test_the_stride_of_features_follows_from_the_backbone(backbone: str, stride: int):
    assert feature_stride(backbone) == stride


@pytest.mark.parametrize(("spare", "level"), [(-1000, "problem"), (1000, "fact")])
def test_a_full_disk_is_a_problem_unless_the_files_are_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[PlannedStep], spare: int, level: str
):
    folder = tmp_path / "artifacts" / "voc" / "cam"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(bytes(5000))
    free = sum(bytes_by_role(steps, {"train": facts("train"), "val": facts("val")}).values()) - 5000 + spare
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free) if path == folder.parent else None)
    (found,) = space_findings(scans(), steps, folder.parent)
    assert (found.level, found.code) == (level, "disk-space")
    assert "5.0 kB are there" in found.text
    assert ("Free 1.0 kB" in found.advice) == (spare < 0)


def test_a_folder_that_does_not_exist_yet_lies_where_its_parent_lies(tmp_path: Path, steps: list[PlannedStep]):
    assert folder_bytes(tmp_path / "no" / "such") == 0
    (found,) = space_findings(scans(), steps, tmp_path / "no" / "such")
    assert found.level == "fact"
    assert "0 B are there" in found.text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (7.25e12, "7250.0 GB")]
)
def test_sizes_are_readable(size: float, text: str):
    assert human(size) == text
