"""Features of a frozen backbone for every image, written once and read by every light method."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.feature_space import space_needed
from dhr_lightning.data.frozen_features import FeatureDataset, FeatureReader, FrozenSettings
from dhr_lightning.data.loading import WorkerDataLoader
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features.frozen.spec import SPEC
from dhr_lightning.models.taps import default_taps, is_backbone
from dhr_lightning.provenance.registered import FROZEN

log = logging.getLogger("dhr_lightning")


class FrozenTask(BaseTask):
    """Predict features of whole images; nothing is trained.

    Each image is resized, never padded, and passes the backbone alone, so that its features depend on it alone. On a
    CPU several processes of one thread compute side by side, which is faster than one process of several threads.

    Args:
        backbone: name of a timm model (with its tag: `vit_base_patch16_clip_quickgelu_224.openai`) or of an encoder of
            `models.backbones.build_encoder`; `auto` is what the file of weights is called after, such as
            `tf_efficientnet_lite0.safetensors`, and CLIP ViT-B/16 if that is no such name.
        pretrained: `true` (by name) or a file of weights.
        taps: layers to write, see `models.taps.TapEncoder`; default those of `models.taps.default_taps`.
        side: long side of the resized image in pixels; both sides are rounded to whole cells.
        scales: sizes relative to that to average over, see `data.frozen_features.FrozenSettings`.
        flip: average with the features of the mirrored image.
        normalize: give all cells of a tap the same length, see `data.frozen_features.FrozenSettings`.
        compute: number type inside the backbone, `bfloat16` (float32 all the same on a processor that only emulates
            it, see `models.taps.TapEncoder.settle`) or `float32`.
        cache: write the features; `false` writes files without values, and every reader computes what it reads. That
            needs no disk, and the time of the backbone at every reading.
        processes: processes on a CPU, or `auto`: one for each core.
        **options: classes, see `BaseTask`; no optimiser is used.

    Source: frozen features with light heads, as in LOST, STEGO (arXiv:2203.08414) and CLIP-ES (arXiv:2212.09506).
    """

    spec = SPEC

    def __init__(
        self,
        *,
        backbone: str = "auto",
        pretrained: bool | str = False,
        taps: Sequence[str] | None = None,
        side: int = FrozenSettings.side,
        scales: Sequence[float] = FrozenSettings.scales,
        flip: bool = FrozenSettings.flip,
        normalize: bool = FrozenSettings.normalize,
        compute: str = FrozenSettings.compute,
        cache: bool = True,
        processes: int | str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if processes != "auto" and (isinstance(processes, str) or processes < 0):
            raise ConfigError(f"Expected model.init_args.processes to be auto or >= 0, but got {processes!r}.")
        given = {"scales": scales, "flip": flip, "normalize": normalize, "compute": compute, "side": side}
        settings = frozen_settings(backbone=backbone, pretrained=pretrained, taps=taps, **given)
        self.network = settings.encoder()
        self.card = self.network.card
        self.reader = FeatureReader(self.network, settings)

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def records_dataloader(self, records: list[Record]) -> DataLoader[Any]:
        """Features of some images on a CPU, made by the loader's processes; on a GPU the resized images."""
        datamodule, device = self.trainer.datamodule, self.trainer.strategy.root_device
        self.network.settle(device)  # once, not in each of the processes
        if not self.hparams.cache:
            return DataLoader(_Grids(records, self.reader), batch_size=None, num_workers=0)
        on_cpu = device.type == "cpu"
        reader = FeatureReader(self.network, self.reader.settings, computes=on_cpu)
        workers = self._processes() if on_cpu else datamodule.num_workers
        return WorkerDataLoader(FeatureDataset(records, reader), batch_size=None, num_workers=workers)

    def _processes(self) -> int:
        if self.hparams.processes != "auto":
            return int(self.hparams.processes)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if cores > 1 else 0

    def on_predict_start(self) -> None:
        """Say whose features they are, and how much space they will take; refuse a disk that is too small."""
        if not self.trainer.is_global_zero:
            return
        datamodule, card = self.trainer.datamodule, self.card
        log.info("%s: %s, %s, licence: %s", self.step, self.backbone, card.words, card.licence or "not stated")
        if self.computed_in != self.reader.settings.compute:
            log.info(
                "%s: computed in %s: this processor only emulates %s, which takes many times as long",
                *(self.step, self.computed_in, self.reader.settings.compute),
            )
        records = [
            record
            for split in datamodule.predict_splits
            for record in datamodule.records(split)
            if (split, record.id) not in datamodule.written
        ]
        if records and self.hparams.cache:
            folder, advice = datamodule.output_folder("features", "train"), (
                "write less: fewer taps or a smaller side. Without any space: "
                f"--{self.step}.cache false, which computes features at every reading"
            )  # fmt: skip
            channels = sum(self.network.channels.values())
            log.info("%s: %s", self.step, space_needed(records, self.reader.grid, channels, folder, advice=advice))

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self.reader.settings.backbone

    @property
    def computed_in(self) -> str:
        """Number type inside the backbone, on the device of a prediction once it has one."""
        return str(self.network.dtype).removeprefix("torch.")

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Features of one image, or what a process of the loader made of it."""
        features: Tensor | None = batch.get("features")
        if features is None:
            features = self.reader.features(batch["images"], batch["id"][0])
        return {"features": [(features.cpu(),)]}

    def inference_info(self) -> dict[str, Any]:
        """Channels of each tap in the order of the files, whose features they are, and how to compute them."""
        live = {} if self.hparams.cache else {"live": self.reader.settings.record()}
        words = {"backbone": self.backbone, "supervision": self.card.words, "licence": self.card.licence}
        return {"taps": dict(self.network.channels), "computed_in": self.computed_in, **words, **live}


def frozen_settings(
    *,
    backbone: str = "auto",
    pretrained: bool | str = False,
    taps: Sequence[str] | None = None,
    scales: Sequence[float] = FrozenSettings.scales,
    **options: Any,
) -> FrozenSettings:
    """What features depend on, from the arguments of `FrozenTask`; those that do not concern them are passed over."""
    name = named_after(pretrained) if backbone == "auto" else backbone
    known = {key: value for key, value in options.items() if key in ("side", "flip", "normalize", "compute")}
    chosen = tuple(taps) if taps else default_taps(name)
    return FrozenSettings(name, pretrained, chosen, scales=tuple(scales), **known)


def named_after(pretrained: bool | str) -> str:
    """The backbone that a file of weights is called after; CLIP ViT-B/16 if there is none."""
    stem = Path(pretrained).stem if isinstance(pretrained, str) else ""
    return stem if is_backbone(stem) else FROZEN


class _Grids(torch.utils.data.Dataset[dict[str, Any]]):
    """Features without a channel, which say the grid alone."""

    def __init__(self, records: Sequence[Record], reader: FeatureReader) -> None:
        self.records, self.reader = list(records), reader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {"id": [record.id], "features": torch.zeros(0, *self.reader.grid(record), dtype=torch.float16)}
