"""The built-in synthetic dataset: 128x128 scenes with the three failure modes of weakly supervised segmentation.

Small classes lie on a large neighbour (bottle on table, rider on bike), a train is always on rails and a boat always on
water, and some classes are rare. Everything is drawn from a seed, so nothing is downloaded.
"""

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dhr_lightning.artifacts.lock import native_lock
from dhr_lightning.data.microworld.files import FOLDERS, make_folders, write_list, write_scene
from dhr_lightning.data.microworld.grammar import Stuff, Thing
from dhr_lightning.data.microworld.scene import Scene, render
from dhr_lightning.errors import DataError

__all__ = ["MARKER", "MICROWORLD_CLASSES", "STUFF_NAMES", "VERSION", "Scene", "ensure", "generate", "render"]

VERSION = 1
MARKER = "microworld.json"
MICROWORLD_CLASSES = ("background", *(thing.name.lower() for thing in Thing))
STUFF_NAMES = tuple(stuff.name.lower() for stuff in Stuff)

_OWN_ENTRIES = frozenset({MARKER, *(folder.split("/")[0] for folder in FOLDERS)})

Progress = Callable[[int, int], None]


def ensure(root: Path, *, seed: int = 0, train: int = 800, val: int = 160, progress: Progress | None = None) -> bool:
    """Generate the dataset unless `root` already holds it with the same version, seed and sizes.

    Args:
        root: folder of the dataset.
        seed: seed of the dataset, >= 0.
        train: number of training images, > 0.
        val: number of validation images, > 0.
        progress: called with (images done, images in all) after each image.

    Returns:
        whether images were generated.

    Raises:
        ValueError: if `seed`, `train` or `val` is out of range.
        DataError: if `root` holds anything that this module did not write.
    """
    _check_sizes(seed=seed, train=train, val=val)
    root = Path(root).resolve()
    wanted = _marker(seed=seed, train=train, val=val)
    if _read_marker(root) == wanted:
        return False
    _refuse_foreign(root)
    with _exclusive(root):
        if _read_marker(root) == wanted:
            return False
        _build(root, seed=seed, sizes={"train": train, "val": val}, progress=progress)
    return True


def generate(root: Path, *, seed: int = 0, train: int = 800, val: int = 160, progress: Progress | None = None) -> None:
    """Write the dataset in the VOC layout, replacing an earlier one at `root`.

    Everything is written to a folder beside `root` that takes its place at the end, so a run that was killed leaves
    `root` as it was.

    Args:
        root: folder of the dataset; it may be absent, empty, or an earlier `microworld`.
        seed: seed of the dataset, >= 0.
        train: number of training images, > 0.
        val: number of validation images, > 0.
        progress: called with (images done, images in all) after each image.

    Raises:
        ValueError: if `seed`, `train` or `val` is out of range.
        DataError: if `root` holds anything that this module did not write.
    """
    _check_sizes(seed=seed, train=train, val=val)
    root = Path(root).resolve()
    _refuse_foreign(root)
    with _exclusive(root):
        _build(root, seed=seed, sizes={"train": train, "val": val}, progress=progress)


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Wait until no other process generates `root`, then delete what killed ones left beside it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with native_lock(root.with_name(f".{root.name}.lock"), wait=True):
        for leftover in root.parent.glob(f".{glob.escape(root.name)}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _build(root: Path, *, seed: int, sizes: dict[str, int], progress: Progress | None) -> None:
    """Write beside `root`, then take its place."""
    building = root.with_name(f".{root.name}.tmp-{os.getpid()}")
    try:
        _write_all(building, seed=seed, sizes=sizes, progress=progress)
        _swap(building, root)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_all(folder: Path, *, seed: int, sizes: dict[str, int], progress: Progress | None) -> None:
    make_folders(folder)
    done, total = 0, sum(sizes.values())
    for split, size in sizes.items():
        image_ids = [f"{split}_{index + 1:04d}" for index in range(size)]
        for index, image_id in enumerate(image_ids):
            write_scene(folder, image_id, render(seed, split == "val", index))
            done += 1
            if progress is not None:
                progress(done, total)
        write_list(folder, split, image_ids)
    marker = _marker(seed=seed, train=sizes["train"], val=sizes["val"])
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _swap(building: Path, root: Path) -> None:
    """Put a complete folder in the place of `root`; the earlier one is deleted only afterwards."""
    _refuse_foreign(root)
    retired = root.with_name(f".{root.name}.tmp-{os.getpid()}-old")
    if root.exists():
        os.replace(root, retired)
    try:
        os.replace(building, root)
    except OSError:
        if not root.exists() and retired.exists():
            os.replace(retired, root)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _marker(*, seed: int, train: int, val: int) -> dict[str, int]:
    return {"version": VERSION, "seed": seed, "train": train, "val": val}


def _read_marker(root: Path) -> dict[str, object] | None:
    """The content of the marker; None where there is none or it cannot be read."""
    try:
        content = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _check_sizes(*, seed: int, train: int, val: int) -> None:
    if seed < 0:
        raise ValueError(f"Expected `seed` >= 0, but got {seed}.")
    if train < 1 or val < 1:
        raise ValueError(f"Expected `train` and `val` >= 1, but got {train} and {val}.")


def _refuse_foreign(root: Path) -> None:
    """Raise where replacing `root` would delete something that this module did not write."""
    if not root.exists():
        return
    if not root.is_dir():
        raise DataError(f"{root} is a file, but the microworld dataset needs a folder. Give another folder.")
    entries = sorted(entry.name for entry in root.iterdir())
    if not entries:
        return
    advice = "Give another folder, or move the contents away."
    if _read_marker(root) is None:
        raise DataError(
            f"{root} holds {len(entries)} entries, first {entries[0]!r}, and no readable {MARKER}, so it is not "
            f"replaced by the microworld dataset. {advice}"
        )
    foreign = [name for name in entries if name not in _OWN_ENTRIES]
    if foreign:
        raise DataError(
            f"{root} holds an earlier microworld dataset and {len(foreign)} other entries, first {foreign[0]!r}, "
            f"that would be deleted with it. {advice}"
        )
