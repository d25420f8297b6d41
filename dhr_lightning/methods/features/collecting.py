"""What the methods share whose backbone may be fitted to the images before anything else."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.base import FeatureTask
from dhr_lightning.methods.features.images import equal_sizes
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.uss import USSNetwork
from dhr_lightning.ranks import gathered


class CollectingTask(FeatureTask):
    """Base of tasks that fit the backbone `patches` in their first epoch, to patches drawn over all images.

    Args:
        backbone: `patches` (training-free, made for the built-in data), a timm vision transformer, or an encoder of
            `models.backbones.build_encoder`, whose map before the last stage is taken.
        pretrained: `false`, `true` (by name) or a path; ignored by `patches`.
        dimension: channels D of the features.
        patches: patches drawn, over the whole training set.
        **options: see `FeatureTask`.
    """

    def __init__(
        self,
        *,
        backbone: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = False,
        dimension: int = 70,
        patches: int = 30_000,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.card = card_of(backbone, pretrained)
        self.automatic_optimization = False
        self.collected: list[Tensor] = []

    def network_with(self, head: str) -> USSNetwork:
        """The backbone that is asked for with a head of `models.uss.HEADS`."""
        h = self.hparams
        return USSNetwork(h.backbone, head, pretrained=h.pretrained, dimension=h.dimension)

    @property
    def fits_backbone(self) -> bool:
        """Whether the running epoch fits the backbone."""
        return isinstance(self.network.backbone, PatchEncoder) and not bool(self.network.backbone.fitted)

    @property
    def collects(self) -> bool:
        """See `BaseTask`."""
        return self.fits_backbone

    def on_fit_start(self) -> None:
        """Check the number of epochs."""
        wanted = int(self.hparams.backbone == "patches") + 1
        if 0 <= (self.trainer.max_epochs or 0) < wanted:
            raise ConfigError(
                f"This backbone and head need trainer.max_epochs >= {wanted}, but got {self.trainer.max_epochs}."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Draw patches in the epoch that fits the backbone, and do the step of the method afterwards."""
        if not self.fits_backbone:
            self.own_step(batch, batch_idx)
            return
        generator = self.draw(batch_idx)
        for _, images in equal_sizes(batch, self.network.source):
            patches = self.network.backbone.sample_patches(images, self.share(self.hparams.patches), generator)
            self.collected.append(patches)

    @abstractmethod
    def own_step(self, batch: Batch, batch_idx: int) -> None:
        """A training step of the method, once the backbone is ready."""

    def draw(self, batch_idx: int) -> torch.Generator:
        """Randomness of a batch, whatever was drawn before."""
        return torch.Generator().manual_seed(7919 * self.current_epoch + batch_idx)

    def share(self, total: int) -> int:
        """How much of what is drawn over all images each one gives."""
        return -(-total // len(self.trainer.datamodule.records("train")))

    def on_train_epoch_end(self) -> None:
        """Fit the backbone, or what the method fits."""
        if not self.collected:
            return
        everywhere = torch.cat([part.cpu() for parts in gathered(self.collected) for part in parts]).to(self.device)
        self.collected = []
        target = self.network.backbone if self.fits_backbone else self.network.head
        target.fit(everywhere, seed=self.trainer.datamodule.seed)
