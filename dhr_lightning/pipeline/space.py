"""Whether the disk has room for what the steps of a recipe will write, before the first of them."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.data.catalog import Record, subsample_evenly
from dhr_lightning.data.files import image_size
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline.plan import PlannedStep
from dhr_lightning.progress import human
from dhr_lightning.provenance.arguments import constructor_arguments
from dhr_lightning.provenance.identity import StepIdentity

Counts = npt.NDArray[np.int64]
MASK_BYTES = 0.02  # for each pixel: true VOC masks take 0.011; made ones have rougher edges
MASK_HEADER = 900  # bytes: the palette and PNG chunks
CAM_HEADER = 520  # bytes: zip and npy headers of both arrays
FEATURE_HEADER = 128  # bytes: npy header
_CAM_STRIDE, _PATCHES_STRIDE, _ENCODER_STRIDE = 4, 4, 16  # pixels for each cell
_MAP_STRIDE = 4  # of maps of strengths
_FROZEN, _FROZEN_CHANNELS, _FROZEN_SIDE = "frozen", 3072, 448  # four layers of CLIP ViT-B/16, the largest usual ones
_SAMPLE = 64  # images of a split whose sizes are read
_HALF = 2  # bytes of a number in half precision
_PATCH = re.compile(r"patch(\d+)")


@dataclass(frozen=True)
class ImageFacts:
    """What of the images of a split says how large their artifacts are.

    Args:
        sizes: `(N, 2)` width and height in pixels.
        tags: `(N,)` tags of each image.
        count: images of the split, of which the N are a sample.
    """

    sizes: Counts
    tags: Counts
    count: int


def facts_of(records: Sequence[Record]) -> ImageFacts:
    """Facts of a split from the headers of a sample of its images."""
    sample = subsample_evenly(records, _SAMPLE)
    sizes = [image_size(record.image)[::-1] for record in sample]
    tags = [len(record.tags) for record in sample]
    return ImageFacts(np.array(sizes, np.int64).reshape(-1, 2), np.array(tags, np.int64), len(records))


def refuse_small_disk(steps: Sequence[PlannedStep], workspace: Path) -> None:
    """Compare what is free with an estimate of masks, CAMs and features that are not there yet.

    Features of a frozen backbone are left to their own step, which knows its channels; checkpoints come on top.

    Args:
        steps: those that will run.
        workspace: folder of the artifacts; made by the run if it is not there.

    Raises:
        ArtifactError: says how much is needed, how much is free, and what to do.
    """
    needed = sum(map(_bytes_missing, steps))
    free = free_bytes(workspace)
    if needed > free:
        raise ArtifactError(
            f"The steps ahead will write about {human(needed)} below {workspace.absolute()}, but {human(free)} are "
            f"free. Free {human(needed - free)}, or give another --workspace. Nothing has been written."
        )


def free_bytes(folder: Path) -> int:
    """What is free where a folder is or will be."""
    path = folder.absolute()
    place = next(place for place in (path, *path.parents) if place.is_dir())
    return int(shutil.disk_usage(place).free)


def _bytes_missing(step: PlannedStep) -> int:
    """Estimate for the outputs of a step that are not fresh."""
    identity = step.identity
    if identity is None or identity.spec.name == _FROZEN:
        return 0
    missing = [place for place, status in step.statuses().items() if not status.fresh]
    facts = {split: facts_of(step.view.records(split)) for split in {split for _, split in missing}}
    return sum(estimate_bytes(identity, address, facts[split]) for address, split in missing)


def bytes_by_role(steps: Sequence[PlannedStep], facts: Mapping[str, ImageFacts]) -> dict[str, int]:
    """Estimate for everything that the steps write, by what it is: `cam`, `features`, `mask`, ...

    Args:
        steps: of a recipe.
        facts: of the splits; outputs of others count nothing.
    """
    total: dict[str, int] = {}
    for identity in [step.identity for step in steps if step.identity is not None]:
        for address, split in identity.outputs():
            role = kind_of(address).role
            size = estimate_bytes(identity, address, facts[split]) if split in facts else 0
            total[role] = total.get(role, 0) + size
    return total


def estimate_bytes(step: StepIdentity, address: str, facts: ImageFacts) -> int:
    """Estimate for one output of a step: its address, of which split `facts` tell.

    Per image of width W and height H with K tags: CAMs `2 K ceil(H / s) ceil(W / s)`, features of D channels
    `2 D ceil(H / s) ceil(W / s)` (float16, s the stride), masks about 0.02 bytes per pixel.
    """
    role = kind_of(address).role
    if not len(facts.sizes):
        return 0
    each: npt.NDArray[np.float64] | Counts
    if role == "cam":
        each = CAM_HEADER + _HALF * facts.tags * _cam_cells(step, facts.sizes)
    elif role == "features":
        each = FEATURE_HEADER + _HALF * _feature_channels(step) * _feature_cells(step, facts.sizes)
    elif role == "vectors":
        return 0  # some kilobytes
    else:
        each = MASK_HEADER + MASK_BYTES * facts.sizes.prod(1) * (1 if role != "map" else _MAP_STRIDE**-2)
    return round(float(each.mean()) * facts.count)


def _cam_cells(step: StepIdentity, sizes: Counts) -> Counts:
    """Cells of the CAMs of each image, on the step's own grid or on that of stored features."""
    if "cam_stride" not in (constructor_arguments(step.spec.task) or ()):
        return _fixed_cells(sizes, _FROZEN_SIDE)
    return _cells(sizes, int(step.arguments.get("cam_stride", _CAM_STRIDE)))


def _feature_channels(step: StepIdentity) -> int:
    return _FROZEN_CHANNELS if step.spec.name == _FROZEN else int(step.arguments.get("dimension") or 0)


def _feature_cells(step: StepIdentity, sizes: Counts) -> Counts:
    if step.spec.name == _FROZEN:
        return _fixed_cells(sizes, int(step.arguments.get("side", _FROZEN_SIDE)))
    scale = float((step.arguments.get("scales") or [1.0])[0])
    return _cells(sizes, feature_stride(str(step.arguments.get("backbone", ""))) / scale)


def feature_stride(backbone: str) -> int:
    """Pixels per feature cell of a backbone for features: vision transformers name their patch size."""
    match = _PATCH.search(backbone)
    if match:
        return int(match[1])
    return _PATCHES_STRIDE if backbone == "patches" else _ENCODER_STRIDE


def _cells(sizes: Counts, stride: float) -> Counts:
    cells: Counts = np.ceil(sizes / stride).astype(np.int64).prod(1)
    return cells


def _fixed_cells(sizes: Counts, side: int) -> Counts:
    """Cells where every image is resized so that its long side has `side` pixels."""
    shares = sizes / sizes.max(1, keepdims=True)
    cells: Counts = np.maximum(1, side // _ENCODER_STRIDE * shares).round().astype(np.int64).prod(1)
    return cells
