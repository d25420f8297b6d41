"""Stored features of `tiny_voc` with known layers, and real fits and predictions of the light tasks on them."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.runs import write_state
from dhr_lightning.callbacks.checkpoints import AtomicCheckpointIO, LastCheckpoint
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.files import image_size, read_truth
from dhr_lightning.methods.base import BaseTask
from tests.stand_ins import keep, voc_module
from tests.task_samples import make_task

FEATURES, MASKS, CAMS = "uss/1a2b/features", "propagation/1a2b/mask", "cam/1a2b/cam"
TAPS = {"block1": 4, "keys": 3}
CELL = 8  # pixels


def features_of(record: Record, channels: int = 7) -> np.ndarray:
    """`(7, h, w)` float16 with means and deviations far from 0 and 1, which depend on the truth of the image."""
    generator = np.random.default_rng(zlib.crc32(record.id.encode()))
    height, width = (side // CELL for side in image_size(record.image))
    truth = read_truth(record.gt_mask)[CELL // 2 :: CELL, CELL // 2 :: CELL][:height, :width]  # (h, w)
    noise = generator.normal(size=(channels, height, width))
    for channel, value in enumerate((0, 8, 12, 7)):
        noise[channel] += 4 * (truth == value)
    return (noise * np.arange(1, channels + 1)[:, None, None] + 10).astype(np.float16)


def stored_module(
    root: Path, workspace: Path, method: str, *, taps: Mapping[str, int] | None = TAPS, inputs: Mapping[str, str],
    **settings: Any,
) -> WSSSDataModule:  # fmt: skip
    """The datamodule in a run of a method, with stored features of both splits."""
    datamodule = voc_module(root, workspace, method, inputs={"features": FEATURES, **inputs})
    for name, value in settings.items():
        setattr(datamodule, name, value)
    for split in ("train", "val"):
        records = datamodule.records(split)
        identity = Manifest.create(FEATURES, "voc", split, ids=[record.id for record in records], settings={})
        with datamodule.writer(identity, owner=True) as writer:
            for record in records:
                writer.write(record.id, features_of(record))
            writer.seal(**({"taps": dict(taps)} if taps else {}))
    return datamodule


def put_masks(datamodule: WSSSDataModule, address: str = MASKS, *, ignored: int = 0) -> None:
    """The truth of the training images as masks, without the topmost rows of pixels."""
    files = {}
    for record in datamodule.records("train"):
        mask = read_truth(record.gt_mask).copy()
        mask[:ignored] = 255
        files[record.id] = (mask,)
    keep(datamodule, address, "train", files)


def put_cams(datamodule: WSSSDataModule, address: str = CAMS) -> None:
    """CAMs of the tags on the grid of the features: 1 where the truth shows the class, 0.1 elsewhere."""
    files = {}
    for record in datamodule.records("train"):
        height, width = (side // CELL for side in image_size(record.image))
        truth = read_truth(record.gt_mask)[CELL // 2 :: CELL, CELL // 2 :: CELL][:height, :width]
        maps = np.stack([np.where(truth == tag, 1.0, 0.1) for tag in record.tags])
        files[record.id] = (np.array(record.tags, np.int16), maps.astype(np.float16))
    keep(datamodule, address, "train", files)


def task_on(datamodule: WSSSDataModule, **options: Any) -> BaseTask:
    """The task of the datamodule's method for its classes."""
    method = str(datamodule.method)
    return make_task(datamodule.spec.task_name, method=method, class_names=datamodule.class_names, **options)


def trainer(folder: Path, *callbacks: L.Callback, epochs: int = 2) -> L.Trainer:
    """A quiet trainer that keeps checkpoints as a stage does."""
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, LastCheckpoint()],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def fit(
    task: BaseTask, datamodule: WSSSDataModule, folder: Path, *callbacks: L.Callback, epochs: int = 2,
    checkpoint: Path | None = None, seed: int = 0,
) -> L.Trainer:  # fmt: skip
    """A real fit, or its continuation; networks are built in it."""
    torch.manual_seed(seed)
    run = trainer(folder, *callbacks, epochs=epochs)
    run.fit(task.train(), datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    return run


class _Outputs(L.Callback):
    def __init__(self) -> None:
        self.found: dict[str, list[Tensor]] = {}

    def on_predict_batch_end(self, trainer: L.Trainer, task: BaseTask, outputs: Any, batch: Any, *_: Any) -> None:
        for kind, files in outputs.items():
            self.found |= {f"{kind}/{one}": list(file) for one, file in zip(batch["id"], files, strict=True)}


def predict(task: BaseTask, datamodule: WSSSDataModule, folder: Path) -> dict[str, list[Tensor]]:
    """What a task writes, by kind and image: `cam/2007_000001`."""
    outputs = _Outputs()
    trainer(folder, outputs).predict(task.eval(), datamodule=datamodule, return_predictions=False)
    return outputs.found


def last(folder: Path) -> Path:
    """The checkpoint of a fit."""
    return folder / "checkpoints" / "last.ckpt"


def as_run(datamodule: WSSSDataModule, checkpoint: Path, name: str = "tag_head/1a2b") -> None:
    """Put a checkpoint where a step reads it as the weights of a finished run."""
    folder = datamodule.workspace / "runs" / "voc" / name
    target = folder / "version_0" / "checkpoints" / "last.ckpt"
    target.parent.mkdir(parents=True)
    target.write_bytes(checkpoint.read_bytes())
    write_state(folder, {"digest": "0", "run": "version_0", "fitted": True})


def same_outputs(one: Mapping[str, Sequence[Tensor]], other: Mapping[str, Sequence[Tensor]]) -> bool:
    """Whether two predictions hold the same files: maps up to rounding, everything else exactly."""
    return one.keys() == other.keys() and all(
        len(one[name]) == len(other[name])
        and all(
            torch.allclose(a, b, atol=1e-5) if a.is_floating_point() else torch.equal(a, b)
            for a, b in zip(one[name], other[name], strict=True)
        )
        for name in one
    )
