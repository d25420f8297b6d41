"""Datamodules over `tiny_voc` with artifacts made by hand, for a task that reads what a test says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from lightning.fabric.utilities.data import _set_sampler_epoch

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.files import image_size
from dhr_lightning.data.run_inputs import NO_METHOD
from dhr_lightning.data.sample import Batch
from dhr_lightning.steps import Read, StepSpec, Write

Make = Callable[..., WSSSDataModule]
MASKS, FEATURES = ("mask", "label"), ("features",)


def spec_of(reads: Mapping[str, Read] | None = None, *splits: str, rounds: bool = False) -> StepSpec:
    """A method that reads this, and writes masks of some splits."""
    writes = {"mask": Write(splits or ("train",), rounds=rounds)}
    return StepSpec("toy", "toy.ToyTask", "for tests", reads=reads or {}, writes=writes)


def make_datamodule(
    root: Path, workspace: Path, spec: StepSpec | None = None, *, task: Mapping[str, Any] | None = None,
    ranks: tuple[int, int] = (0, 1), **options: Any,
) -> WSSSDataModule:  # fmt: skip
    """A datamodule in a run of a method; `task` are attributes of the task."""
    settings = {"batch_size": 2, "num_workers": 0, "crop_size": 32, "scale": (0.5, 2.0), **options}
    datamodule = WSSSDataModule("voc", root=str(root), workspace=str(workspace), **settings)
    module = SimpleNamespace(spec=spec or NO_METHOD, **(task or {}))
    datamodule.trainer = SimpleNamespace(
        lightning_module=module, world_size=ranks[1], global_rank=ranks[0], training=True
    )
    return datamodule


def put(
    datamodule: WSSSDataModule, address: str, arrays_of: Callable[[int, tuple[int, int]], Any], *,
    split: str = "train", **info: Any,
) -> None:  # fmt: skip
    """Seal an artifact: arrays by index and size `(height, width)` of an image."""
    records = datamodule.records(split)
    identity = Manifest.create(address, "voc", split, ids=[record.id for record in records], settings={})
    with datamodule.writer(identity, owner=True) as writer:
        for index, record in enumerate(records):
            writer.write(record.id, *arrays_of(index, image_size(record.image)))
        writer.seal(**info)


def put_masks(datamodule: WSSSDataModule, address: str, *, value: int = 8, **info: Any) -> None:
    """Masks of one value."""
    put(datamodule, address, lambda _, size: (np.full(size, value, np.uint8),), **info)


def put_features(datamodule: WSSSDataModule, address: str = "uss/1a2b/features") -> None:
    """Features that are 1 in the first image, 2 in the second and so on."""
    put(datamodule, address, lambda index, _: (np.full((3, 6, 8), index + 1, np.float16),))


def put_cams(datamodule: WSSSDataModule, address: str = "cam/1a2b/cam") -> None:
    """CAMs of the tags, of one value each: a hundredth of the class value."""
    records = datamodule.records("train")

    def arrays(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        keys = np.array(records[index].tags, np.int16)
        maps = np.broadcast_to(keys[:, None, None] / 100, (len(keys), size[0] // 4, size[1] // 4))
        return keys, maps.astype(np.float16)

    put(datamodule, address, arrays)


def run_epoch(datamodule: WSSSDataModule, epoch: int) -> list[Batch]:
    """All training batches of an epoch."""
    loader = datamodule.train_dataloader()
    _set_sampler_epoch(loader, epoch)  # as Lightning does it
    return list(loader)
