"""Runs of the method `frozen` on the tiny dataset, with small random backbones."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.callbacks.writers import ArtifactWriters
from dhr_lightning.cli import quiet
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.methods.features.frozen.task import FrozenTask
from dhr_lightning.provenance.identity import StepIdentity
from tests.data.frozen_samples import VIT

SMALL = {"backbone": VIT, "taps": ["block2", "block1"], "side": 64, "processes": 0}


class FrozenRun:
    """Features of the tiny dataset by one set of settings.

    Args:
        root: of the dataset.
        workspace: where they go.
        settings: of the task, besides `SMALL`.
    """

    def __init__(self, root: Path, workspace: Path, **settings: Any) -> None:
        arguments = {**SMALL, **settings}
        data = {"dataset": "voc", "root": str(root), "workspace": str(workspace), "method": "frozen"}
        self.identity = StepIdentity({"model": {"class_path": "FrozenTask", "init_args": arguments}, "data": data})
        self.datamodule = WSSSDataModule("voc", str(root), str(workspace), "frozen", num_workers=0)
        self.datamodule.attach(self.identity)
        torch.manual_seed(0)  # the same random weights in every run
        self.task = FrozenTask(class_names=list(VOC_CLASSES), **arguments)

    @property
    def address(self) -> str:
        return self.identity.address("features")

    def predict(self, *callbacks: L.Callback) -> "FrozenRun":
        """Write the features that are missing."""
        trainer = L.Trainer(
            accelerator="cpu", callbacks=[ArtifactWriters(), *callbacks], logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        with warnings.catch_warnings():
            quiet()
            trainer.predict(self.task, datamodule=self.datamodule, return_predictions=False)
        return self

    def path(self, split: str, name: str) -> Path:
        return self.datamodule.store.path(self.address, split, name)

    def files(self) -> Mapping[tuple[str, str], bytes]:
        """Content of every file that is there."""
        places = [(split, record.id) for split in ("train", "val") for record in self.datamodule.records(split)]
        return {place: self.path(*place).read_bytes() for place in places if self.path(*place).exists()}

    def manifest(self, split: str = "train") -> Manifest | None:
        return self.datamodule.store.manifest(self.address, split)
