"""Features of a frozen backbone for every image, written once and read by every light method."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dhr_lightning.data.catalog import Record
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features.frozen.images import FeatureDataset, FeatureReader, space_needed
from dhr_lightning.methods.features.frozen.spec import SPEC
from dhr_lightning.models.taps import TapEncoder

log = logging.getLogger("dhr_lightning")


class FrozenTask(BaseTask):
    """Predict features of whole images; nothing is trained.

    Each image is resized, never padded, and passes the backbone alone, so that its features depend on it alone. On a
    CPU several processes of one thread compute side by side, which is faster than one process of several threads.

    Args:
        backbone: name of a timm model (with its tag: `vit_base_patch16_clip_quickgelu_224.openai`) or of an encoder of
            `models.backbones.build_encoder`.
        pretrained: `true` (by name) or a file of weights.
        taps: layers to write, see `models.taps.TapEncoder`.
        side: long side of the resized image in pixels; both sides are rounded to whole cells.
        compute: number type inside the backbone, `bfloat16` or `float32`.
        processes: processes on a CPU, or `auto`: one for each core.
        **options: classes, see `BaseTask`; no optimiser is used.

    Source: frozen features with light heads, as in LOST, STEGO (arXiv:2203.08414) and CLIP-ES (arXiv:2212.09506).
    """

    spec = SPEC

    def __init__(
        self,
        *,
        backbone: str = "vit_base_patch16_clip_quickgelu_224.openai",
        pretrained: bool | str = False,
        taps: Sequence[str] = ("block8", "block11", "keys", "vv"),
        side: int = 576,
        compute: str = "bfloat16",
        processes: int | str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if processes != "auto" and (isinstance(processes, str) or processes < 0):
            raise ConfigError(f"Expected model.init_args.processes to be auto or >= 0, but got {processes!r}.")
        self.network = TapEncoder(backbone, taps=tuple(taps), pretrained=pretrained, dtype=compute)
        self.card = self.network.card
        self.reader = FeatureReader(self.network, side)

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def records_dataloader(self, records: list[Record]) -> DataLoader[Any]:
        """Features of some images on a CPU, made by the loader's processes; on a GPU the resized images."""
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        dataset = FeatureDataset(records, self.reader if on_cpu else self.reader.without_network())
        workers = self._processes() if on_cpu else self.trainer.datamodule.num_workers
        return DataLoader(dataset, batch_size=None, num_workers=workers)

    def _processes(self) -> int:
        if self.hparams.processes != "auto":
            return int(self.hparams.processes)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if cores > 1 else 0

    def on_predict_start(self) -> None:
        """Say whose features they are, and how much space they will take; refuse a disk that is too small."""
        if not self.trainer.is_global_zero:
            return
        datamodule, card = self.trainer.datamodule, self.network.card
        log.info("%s: %s, %s, licence: %s", self.step, self.hparams.backbone, card.words, card.licence or "not stated")
        left = {
            split: [record for record in datamodule.records(split) if (split, record.id) not in datamodule.written]
            for split in datamodule.predict_splits
        }
        folder = datamodule.output_folder("features", "train")
        records = [record for split in left.values() for record in split]
        if records:
            log.info("%s: %s", self.step, space_needed(records, self.reader, folder))

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Features of one image, or what a process of the loader made of it."""
        features: Tensor | None = batch.get("features")
        if features is None:
            features = self.network(batch["image"][None])[0]
        return {"features": [(features.cpu(),)]}

    def inference_info(self) -> dict[str, Any]:
        """Channels of each tap in the order of the files, and whose features they are."""
        card = self.network.card
        return {"taps": dict(self.network.channels), "supervision": card.words, "licence": card.licence}
