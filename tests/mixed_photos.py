"""Photos of several sizes and orientations with masks and features, read through the datamodule as tasks see them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from dhr_lightning.artifacts.arrays import write_features
from dhr_lightning.artifacts.files import write_cam, write_mask
from dhr_lightning.callbacks.writers import to_arrays
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.models.segmenter import multi_scale_probability
from tests.task_samples import NAMES, make_cam

# Width and height: landscape, portrait, square; several canvases of 32 px, some shared by different sizes.
SIZES = ((64, 30), (50, 28), (30, 64), (64, 64), (61, 60), (33, 96), (28, 50), (60, 34))
TAGS = ((1,), (1, 2), (3,), (2, 4), (1, 2, 3, 4), (4,), (2,), (1, 3))

Files = dict[str, dict[str, list[np.ndarray]]]  # kind, image id -> arrays as they are stored


class MixedPhotos:
    """A datamodule over the photos; `outputs` runs a task over any selection of them, in any order and batch size."""

    def __init__(self, folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        self.datamodule = WSSSDataModule("voc", root=str(folder), workspace=str(folder.parent / "work"), num_workers=0)
        self.datamodule.info = replace(self.datamodule.info, classes=ClassSet(tuple(NAMES)))
        self.records = [self._write(folder, index, size, generator) for index, size in enumerate(sizes)]

    def _write(self, folder: Path, index: int, size: tuple[int, int], generator: np.random.Generator) -> Record:
        (width, height), tags = size, TAGS[index]
        image_id = f"photo_{index}"
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        photo.save(folder / f"{image_id}.png")
        blocks = generator.choice([0, *tags], (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
        mask = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
        cells = generator.normal(size=(6, -(-height // 4), -(-width // 4))).astype(np.float16)
        maps = make_cam(len(tags), (-(-height // 4), -(-width // 4)), torch.Generator().manual_seed(index)).numpy()
        write_mask(self._path("mask", image_id), mask, self.datamodule.classes.palette)
        write_features(self._path("features", image_id), cells)
        self.write_cam(image_id, np.array(tags, np.int16), maps.astype(np.float16))
        return Record(image_id, folder / f"{image_id}.png", tags)

    def write_cam(self, image_id: str, keys: np.ndarray, maps: np.ndarray) -> None:
        """Replace the stored CAMs of a photo."""
        write_cam(self._path("cam", image_id), keys, maps)

    def _path(self, kind: str, image_id: str) -> Path:
        path = self.datamodule.store.path(kind, "train", image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def attach(self, task: BaseTask, chosen: Sequence[int], batch_size: int) -> WSSSDataModule:
        """The datamodule over some photos, with this task as the one that asks."""
        records = [self.records[index] for index in chosen]
        self.datamodule._records = {"train": records, "val": records}
        self.datamodule.predict_batch_size = batch_size
        self.datamodule.inputs = {port: read.kinds[0] for port, read in task.spec.reads.items() if not read.weights}
        task._trainer = SimpleNamespace(datamodule=self.datamodule)
        self.datamodule.trainer = SimpleNamespace(lightning_module=task, world_size=1, global_rank=0, training=False)
        return self.datamodule

    def outputs(self, task: BaseTask, chosen: Sequence[int], batch_size: int) -> Files:
        """Everything that the task predicts for some photos, and for DHR the masks of a refresh."""
        datamodule = self.attach(task, chosen, batch_size)
        found: Files = {}
        for number, loader in enumerate(datamodule.predict_dataloader()):
            split = datamodule.predict_splits[number]
            for batch in map(lambda one: datamodule.on_after_batch_transfer(one, 0), loader):
                for kind, payloads in task.predict_step(batch, 0, number).items():
                    _keep(found, f"{kind}/{split}", batch, [to_arrays(kind, tensors) for tensors in payloads])
                if hasattr(task, "inference"):
                    protocol = task.inference.settings
                    maps = multi_scale_probability(
                        task.network, batch["image"], scales=protocol.scales, flip=protocol.flip
                    )
                    _keep(found, f"probability/{split}", batch, _cut(maps, batch))
        if hasattr(task, "pseudo_masks"):
            for batch in datamodule.whole_dataloader(datamodule.records("train"), when="refresh"):
                masks = task.pseudo_masks(datamodule.on_after_batch_transfer(batch, 0)).mask
                _keep(found, "mask/train", batch, _cut(masks, batch))
        return found


def _cut(masks: torch.Tensor, batch: Batch) -> list[list[np.ndarray]]:
    sizes = [geometry.size for geometry in batch["geometry"]]
    return [[mask[..., :height, :width].numpy()] for mask, (height, width) in zip(masks, sizes, strict=True)]


def _keep(found: Files, kind: str, batch: Batch, arrays: list[list[np.ndarray]]) -> None:
    found.setdefault(kind, {}).update(zip(batch["id"], arrays, strict=True))


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, float]:
    """Largest difference of float maps, and share of unlike pixels of masks; infinite where shapes differ."""
    maps = masks = 0.0
    for first, second in zip(one, other, strict=True):
        if first.shape != second.shape:
            return float("inf"), 1.0
        if first.dtype.kind == "f" and first.size:
            maps = max(maps, float(np.abs(first.astype(np.float32) - second.astype(np.float32)).max()))
        elif first.size:
            masks = max(masks, float((first != second).mean()))
    return maps, masks


def randomise(task: BaseTask) -> BaseTask:
    """Weights and norms with some spread, because those of an untrained network are nearly the same everywhere."""
    generator: Any = torch.Generator().manual_seed(3)
    for name, tensor in task.state_dict().items():
        if tensor.is_floating_point() and "running_var" not in name:
            tensor += 0.2 * tensor.abs().mean().clamp(min=0.1) * torch.randn(tensor.shape, generator=generator)
    return task
