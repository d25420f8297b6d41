"""Mean features of the five crops of each image, written once and read by every fit of STEGO."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.crops import CROPS, FiveCrop
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.features.crops.spec import SPEC
from dhr_lightning.methods.features.images import images_of
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.uss import USSNetwork


class CropsTask(BaseTask):
    """Predict the mean feature of each crop; nothing is trained.

    Args:
        backbone: a timm vision transformer or an encoder, see `models.uss.USSNetwork`.
        pretrained: `false`, `true` (by name) or a path.
        crop_size: side of a crop in pixels, a multiple of the backbone's patch.
        crop_ratio: side of each of the five crops relative to the image, in (0, 1].
        **options: classes, see `BaseTask`.

    Source: the table of neighbours of STEGO (arXiv:2203.08414), published code.
    Differs: the mean features are kept, not the neighbours, which are found among them in seconds; so a fit that
        stops goes on, and one with other constants starts, without the backbone.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        backbone: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = False,
        crop_size: int = 224,
        crop_ratio: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if backbone == "patches":
            raise ConfigError("The backbone `patches` is fitted by STEGO itself, so its crops cannot be kept. Take the "
                              "step out of the recipe, or another backbone.")  # fmt: skip
        self.network = USSNetwork(backbone, "none", pretrained=pretrained, dimension=0)
        check_crop_size(crop_size, self.network, backbone)
        self.crop, self.card = FiveCrop(crop_size, crop_ratio), card_of(backbone, pretrained)

    def records_dataloader(self, records: Sequence[Record]) -> DataLoader[Any]:
        """All crops of some images, five in a row."""
        loader: DataLoader[Any] = self.trainer.datamodule.crops_dataloader(self.crop, records)
        return loader

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Mean features of whole images: `(5, F)` each."""
        vectors = self.network.features(images_of(batch, self.network.source)).float().mean((2, 3)).cpu()
        batch["id"] = batch["id"][::CROPS]  # one file for each image, not for each crop
        return {"crops": [(one,) for one in torch.split(vectors, CROPS)]}

    def inference_info(self) -> dict[str, Any]:
        """What the neighbours depend on."""
        return {"backbone": self.hparams.backbone, "crop": [self.crop.crop_size, self.crop.ratio]}


def check_crop_size(crop_size: int, network: USSNetwork, backbone: str) -> None:
    """Refuse crops that are no whole number of feature cells.

    Raises:
        ConfigError: says of how many pixels a cell is.
    """
    if crop_size % network.cell:
        raise ConfigError(
            f"Expected crop_size to be a multiple of the {network.cell} pixels of a feature cell of {backbone!r}, but "
            f"got {crop_size}."
        )
