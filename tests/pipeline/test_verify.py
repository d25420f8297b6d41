"""`status --verify` finds what the eye of `status` cannot: files that are there and not what they were."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.data.registry import get_dataset
from tests.pipeline_workspace import RECIPE, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


def verify(workspace: Workspace, lines: Lines) -> tuple[int, list[str]]:
    """Exit status, and the lines that are not about fresh artifacts."""
    lines.clear()
    status = main(["status", *RECIPE, "--root", str(workspace.data), "--verify"])
    return status, [line for line in lines.messages if "fresh" not in line and not line.startswith("  run `")]


def one_file(workspace: Workspace, artifact: str, extension: str) -> Path:
    manifests = sorted(workspace.store.root.rglob(f"{artifact}/train/manifest.json"))
    return next(path for path in sorted(manifests[0].parent.rglob(f"*{extension}")))


def test_a_sound_workspace_is_fresh(workspace: Workspace, no_lightning: None, lines: Lines):
    assert verify(workspace, lines) == (0, ["recipe dhr+uss=patches on microworld"])


@pytest.mark.parametrize(("kind", "extension"), [("cam", ".npz"), ("mask", ".png"), ("features", ".npy")])
def test_a_file_that_was_cut_off_or_changed_is_named(
    workspace: Workspace, no_lightning: None, lines: Lines, kind: str, extension: str
):
    path = one_file(workspace, kind, extension)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert main(["status", *RECIPE, "--root", str(workspace.data)]) == 0  # it looks at names alone
    status, found = verify(workspace, lines)
    assert status == 1
    assert sum("damaged (1 of 12 files: " in line and path.name in line for line in found) == 1
    path.unlink()
    assert "partial" in verify(workspace, lines)[1][1]
    path.write_bytes(whole)
    assert verify(workspace, lines)[0] == 0


def test_a_mask_that_somebody_painted_on_is_found(workspace: Workspace, no_lightning: None, lines: Lines):
    path = one_file(workspace, "mask", ".png")
    mask = Image.open(path)
    mask.putpixel((0, 0), 1 - mask.getpixel((0, 0)) % 2)
    mask.save(path)
    status, found = verify(workspace, lines)
    assert (status, len(found)) == (1, 2)
    assert f"{path.name} was changed after it was written" in found[1]


def test_a_photo_that_was_replaced_at_equal_size_and_time_is_found(
    workspace: Workspace, no_lightning: None, lines: Lines, tmp_path: Path
):
    data = tmp_path / "copy"
    shutil.copytree(workspace.data, data)
    moved = Workspace(workspace.folder, data)
    assert verify(moved, lines)[0] == 0
    photo = sorted(data.rglob("*.png"))[0] if not list(data.rglob("*.jpg")) else sorted(data.rglob("*.jpg"))[0]
    before, content = photo.stat(), bytearray(photo.read_bytes())
    content[-20] ^= 1
    photo.write_bytes(content)
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    status, found = verify(moved, lines)
    assert status == 1
    assert any(line.startswith("1 photos of ") and str(photo) in line for line in found)


def test_weights_that_are_not_what_the_fit_left_are_named(workspace: Workspace, no_lightning: None, lines: Lines):
    weights = next(path for path in (workspace.folder / "runs").rglob("last.ckpt") if "/cam/" in str(path))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    status, found = verify(workspace, lines)
    assert status == 1
    assert any("cam" in line and "are missing or damaged" in line for line in found)


def test_photos_that_were_replaced_and_checked_again_make_artifacts_stale(
    workspace: Workspace, no_lightning: None, lines: Lines, tmp_path: Path
):
    data = tmp_path / "copy"
    shutil.copytree(workspace.data, data)
    moved = Workspace(workspace.folder, data)
    photo = data / "JPEGImages" / "train_0001.jpg"
    content = bytearray(photo.read_bytes())
    content[-20] ^= 1
    photo.write_bytes(content)  # the size stays
    info = get_dataset("microworld")
    records = {split: info.read(data, split, info.classes) for split in ("train", "val")}
    check_dataset(workspace.store.root / "microworld", records, info.classes)  # as a run does at its start
    status, found = verify(moved, lines)
    assert status == 1
    stale = [line for line in found if "stale (photos were replaced after it was made" in line]
    assert any(" cam/" in line for line in stale)
    assert not any("prediction/val" in line for line in stale)  # photos of val are the same
