"""What tasks share that read stored features instead of photos."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dhr_lightning.data.catalog import Record, subsample_evenly
from dhr_lightning.data.run_inputs import chosen_taps
from dhr_lightning.data.stored import GridCrop
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.ops.feature_statistics import FeatureStatistics

STATISTICS_IMAGES = 256


class StoredTask(BaseTask):
    """Base of the tasks on stored features.

    Args:
        taps: layers to read, in this order; default all that are stored.
        **options: of `BaseTask`.
    """

    canvas_divisor: ClassVar[int] = 1  # nothing is padded: features lie on the grid of the image itself
    grid_crop: GridCrop | None = None

    def __init__(self, *, taps: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.taps = None if taps is None else tuple(taps)

    def tap_channels(self) -> dict[str, int]:
        """Channels of each tap that is read, in order, see `data.run_inputs.chosen_taps`."""
        return chosen_taps(self.trainer.datamodule.tap_channels("features"), self.taps, step=self.step)

    def split_taps(self, features: Tensor) -> dict[str, Tensor]:
        """`(B, D, h, w)` stored features by tap."""
        channels = self.tap_channels()
        return dict(zip(channels, torch.split(features, list(channels.values()), dim=1), strict=True))

    @torch.no_grad()
    def feature_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(D,)` of each channel over the cells of some training images."""
        statistics = FeatureStatistics()
        records = subsample_evenly(self.trainer.datamodule.records("train"), STATISTICS_IMAGES)
        for batch in self.stored_batches(records, "statistics"):
            statistics.update(batch["inputs"]["features"].float(), batch["valid"])
        return statistics.result()

    def stored_batches(self, records: Sequence[Record], what: str) -> Iterator[dict[str, Any]]:
        """Features of training images, on the device; no photo is read."""
        yield from self.batches(self.trainer.datamodule.stored_dataloader(records), what)
