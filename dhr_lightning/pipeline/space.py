"""Whether the disk has room for what the steps of a recipe will write, before the first of them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.data.catalog import Record, subsample_evenly
from dhr_lightning.data.files import image_size
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline.plan import PlannedStep
from dhr_lightning.progress import human
from dhr_lightning.provenance.arguments import constructor_arguments

MASK_BYTES = 0.02  # for each pixel: true VOC masks take 0.011; made ones have rougher edges
MASK_HEADER = 900  # bytes: the palette and PNG chunks
CAM_HEADER = 520  # bytes: zip and npy headers of both arrays
_CAM_STRIDE = 4
_MAP_STRIDE = 4  # of maps of strengths
_SAMPLE = 64  # images of a split whose sizes are read
_HALF = 2  # bytes of a number in half precision


def refuse_small_disk(steps: Sequence[PlannedStep], workspace: Path) -> None:
    """Compare what is free with an estimate of masks, CAMs and features that are not there yet.

    Features of a frozen backbone are left to their own step, which knows its channels; checkpoints come on top.

    Args:
        steps: those that will run.
        workspace: folder of the artifacts; made by the run if it is not there.

    Raises:
        ArtifactError: says how much is needed, how much is free, and what to do.
    """
    needed = sum(_bytes_of(step) for step in steps if step.identity is not None)
    place = workspace.absolute()
    place = next(one for one in (place, *place.parents) if one.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ArtifactError(
            f"The steps ahead will write about {human(needed)} below {workspace.absolute()}, but {human(free)} are "
            f"free. Free {human(needed - free)}, or give another --workspace. Nothing has been written."
        )


def _bytes_of(step: PlannedStep) -> int:
    """Estimate for the outputs of a step that are not fresh."""
    return sum(_bytes_of_one(step, *place) for place, status in step.statuses().items() if not status.fresh)


def _bytes_of_one(step: PlannedStep, address: str, split: str) -> int:
    records = step.view.records(split)
    if not records or step.identity is None:
        return 0
    role, task = kind_of(address).role, step.identity.spec.task
    if role == "cam" and "cam_stride" not in (constructor_arguments(task) or ()):
        return 0  # maps on the grid of stored features are small
    sample = subsample_evenly(records, _SAMPLE)
    each = np.mean([_bytes_of_image(role, step.identity.arguments, record) for record in sample])
    return round(float(each) * len(records))


def _bytes_of_image(role: str, arguments: Mapping[str, object], record: Record) -> float:
    height, width = image_size(record.image)
    if role == "cam":
        stride = int(str(arguments.get("cam_stride", _CAM_STRIDE)))
        return CAM_HEADER + _HALF * len(record.tags) * -(-height // stride) * -(-width // stride)
    if role == "features":
        dimension = arguments.get("dimension")
        return 0 if dimension is None else _HALF * int(str(dimension)) * height * width / _CAM_STRIDE**2
    if role == "vectors":
        return 0  # some kilobytes
    return MASK_HEADER + MASK_BYTES * height * width * (1 if role != "map" else _MAP_STRIDE**-2)
