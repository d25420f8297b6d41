"""What callbacks and tasks ask of a run, without a run: a trainer, artifacts made by hand, a clock."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.evaluation.compare import compare_masks

TAGS = {"2007_000001": (8,), "2007_000002": (8, 12), "2007_000003": (7,), "2007_000004": (6, 15)}  # of `TINY_VOC`


class Context:
    """A run whose outputs lie below the name of its method, without a key."""

    def __init__(self, datamodule: WSSSDataModule, step: str) -> None:
        self.datamodule, self.step = datamodule, step

    def address(self, kind: str) -> str:
        return f"{self.datamodule.method}/{kind}"

    def describe(
        self, address: str, split: str, *, checkpoint: Path | None = None, info: Mapping[str, Any] | None = None
    ) -> Manifest:
        ids = [record.id for record in self.datamodule.records(split)]
        manifest = Manifest.create(
            address, "voc", split, ids=ids, settings={}, inputs={f"data/{split}": "digest"}, checkpoint=checkpoint
        )
        return manifest.with_info(step=self.step, **(info or {}))


def voc_module(
    root: Path, workspace: Path, method: str = "wss", *, step: str = "", inputs: Mapping[str, str] | None = None
) -> WSSSDataModule:
    """The datamodule over `tiny_voc` in a run of a method."""
    datamodule = WSSSDataModule(
        "voc", root=str(root), workspace=str(workspace), method=method, inputs=dict(inputs or {}), batch_size=2,
        num_workers=0,
    )  # fmt: skip
    datamodule.attach(Context(datamodule, step or method))
    return datamodule


def trainer_of(datamodule: WSSSDataModule | None = None, *, rank: int = 0, **others: Any) -> SimpleNamespace:
    """As much of a trainer as callbacks use; `barriers` lists the names of those passed."""
    barriers: list[str] = []
    return SimpleNamespace(
        **{
            "datamodule": datamodule,
            "is_global_zero": rank == 0,
            "global_rank": rank,
            "world_size": 1,
            "strategy": SimpleNamespace(barrier=barriers.append, root_device=torch.device("cpu")),
            "barriers": barriers,
            "loggers": [],
            "current_epoch": 0,
            "global_step": 0,
            **others,
        }
    )


def keep(datamodule: WSSSDataModule, address: str, split: str, files: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    """Write files of an artifact, and seal it if no image is missing."""
    ids = [record.id for record in datamodule.records(split)]
    identity = Manifest.create(address, "voc", split, ids=ids, settings={})
    with datamodule.writer(identity, owner=True) as writer:
        for image_id, arrays in files.items():
            writer.write(image_id, *arrays)
        if set(files) == set(ids):
            writer.seal()


def run_folder(workspace: Path, method: str) -> Path:
    """The folder with the versions of the one fit of a method, of the built-in data."""
    (folder,) = (workspace / "runs" / "microworld" / method).iterdir()
    return folder


class Clock:
    """Stands for `time.monotonic`; moves by `step` with every look at it."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 1000.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    @classmethod
    def of(cls, monkeypatch: pytest.MonkeyPatch, module: Any, step: float = 0.0) -> "Clock":
        """The clock that a module reads from now on."""
        clock = cls(step)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
        return clock


def compared(datamodule: WSSSDataModule, address: str, previous: str) -> dict[str, float]:
    """Figures of the training masks at two addresses."""
    return compare_masks(datamodule.store, address, previous, datamodule.records("train"), datamodule.classes)
