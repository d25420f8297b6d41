"""What every method shares that writes features of its own network."""

import logging
from typing import Any

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features.images import equal_sizes, space_on_disk
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.models.uss import USSNetwork

log = logging.getLogger("dhr_lightning")


class FeatureTask(BaseTask):
    """Base of the tasks that write the features of a `USSNetwork`: several sizes and mirrors, whole images.

    Each of them has an argument `dimension`, the channels D of its features.

    Args:
        scales: relative image sizes of the written features; the first one fixes their grid.
        flip: average each size with its mirror.
        **options: classes, optimiser and schedule, see `BaseTask`.

    Source: scales and mirror as DHR (arXiv:2404.00380) writes its features.
    """

    network: USSNetwork

    def __init__(
        self,
        *,
        scales: tuple[float, ...] = (2.0, 1.0, 1.5, 0.5),
        flip: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not scales or min(scales) <= 0:
            raise ConfigError(f"Expected model.init_args.scales to be positive numbers, but got {scales}.")

    def on_predict_start(self) -> None:
        """Say how much space the features will take."""
        datamodule = self.trainer.datamodule
        records = [
            record
            for split in datamodule.predict_splits
            for record in datamodule.records(split)
            if (split, record.id) not in datamodule.written
        ]
        if records and self.trainer.is_global_zero:
            folder = datamodule.output_folder("features", "train")
            space = space_on_disk(records, self.network, self.hparams.dimension, self.hparams.scales[0], folder)
            log.info("features: %s", space)

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Features of whole images without padding, evenly over each image."""
        result: list[Any] = [None] * len(batch["geometry"])
        for places, images in equal_sizes(batch, self.network.source):
            features = self.network.multi_scale(images, self.hparams.scales, flip=self.hparams.flip).cpu()
            for place, one in zip(places, features, strict=True):
                result[place] = (one,)
        return {"features": result}
