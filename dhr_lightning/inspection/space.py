"""Disk space that the artifacts of a dataset will take, estimated from image sizes and tags."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dhr_lightning.inspection.finding import Finding
from dhr_lightning.inspection.scan import Scan
from dhr_lightning.pipeline.space import CAM_HEADER, MASK_BYTES, MASK_HEADER
from dhr_lightning.progress import human

_FEATURE_HEADER = 128  # bytes: npy header


@dataclass(frozen=True)
class ArtifactPlan:
    """What a recipe will write.

    Args:
        cam_stride: pixels per CAM cell.
        uss_dimension: channels D of the features.
        uss_stride: pixels of the image per feature cell.
        rounds: how often masks are made again during a fit.
        masks: number of steps that write one mask for each training image.
        predictions: number of steps that write one for each other image.
        cells: cells along the long side of every image, of features whose backbone sees a fixed size; `None` where the
            strides say it.
    """

    cam_stride: int = 4
    uss_dimension: int = 70
    uss_stride: float = 4
    rounds: int = 6
    masks: int = 3
    predictions: int = 2
    cells: int | None = None


def estimate_bytes(scans: Sequence[Scan], plan: ArtifactPlan) -> dict[str, int]:
    """Bytes of each kind of artifact: `cam`, `uss`, and the masks of all splits.

    Per image of width W and height H with K tags: CAMs `2 K ceil(H / s) ceil(W / s)`, features
    `2 D ceil(H / s) ceil(W / s)` (float16, s the stride), masks about 0.02 bytes per pixel and kind.
    """
    train = [s for s in scans if s.split == "train" and s.readable]
    others = [s for s in scans if s.split != "train" and s.readable]
    tags = np.array([len(s.record.tags) for s in train])
    with_features = train if plan.cells is None else [*train, *others]
    cam = 2 * tags * _cells(train, plan.cam_stride, plan.cells) + CAM_HEADER
    uss = 2 * plan.uss_dimension * _cells(with_features, plan.uss_stride, plan.cells) + _FEATURE_HEADER
    masks = (plan.masks + plan.rounds) * _mask_bytes(train) + plan.predictions * _mask_bytes(others)
    return {"cam": int(cam.sum()), "uss": int(uss.sum()), "masks": round(masks)}


def _cells(scans: Sequence[Scan], stride: float, long_side: int | None) -> npt.NDArray[np.int64]:
    sizes = np.array([s.size for s in scans], np.int64).reshape(-1, 2)
    if long_side is not None:
        shares = sizes / sizes.max(1, keepdims=True)
        fixed: npt.NDArray[np.int64] = np.maximum(1, long_side * shares).round().astype(np.int64).prod(1)
        return fixed
    cells: npt.NDArray[np.int64] = np.ceil(sizes / stride).astype(np.int64).prod(1)
    return cells


def _mask_bytes(scans: Sequence[Scan]) -> float:
    return float(sum(MASK_HEADER + MASK_BYTES * s.size[0] * s.size[1] for s in scans))


def space_findings(scans: Sequence[Scan], plan: ArtifactPlan, folder: Path) -> list[Finding]:
    """Compare the space that all stages need with what is free where `folder` is or will be."""
    needed = estimate_bytes(scans, plan)
    total, present = sum(needed.values()), folder_bytes(folder)
    free = shutil.disk_usage(_existing(folder)).free
    text = (
        f"Artifacts of all stages will take about {human(total)}: CAMs {human(needed['cam'])} "
        f"({_grid(plan, plan.cam_stride)}), features {human(needed['uss'])} (D = {plan.uss_dimension}, "
        f"{_grid(plan, plan.uss_stride)}), masks {human(needed['masks'])} ({plan.rounds} rounds); {human(present)} are "
        f"there, {human(free)} free. Checkpoints come on top."
    )
    short = total - present > free
    advice = f"Free {human(total - present - free)} at {folder}, or give another --workspace." if short else ""
    return [Finding("problem" if short else "fact", "disk-space", text, 0, (), advice)]


def _grid(plan: ArtifactPlan, stride: float) -> str:
    return f"stride {stride:g}" if plan.cells is None else f"{plan.cells} cells along the long side"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # a stage that runs at this moment renames its files
    return total


def _existing(folder: Path) -> Path:
    path = folder.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())
