"""Stage 2: unsupervised segmentation (USS) features from a frozen backbone and a fitted or trained head."""

import logging
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.data.crops import CROPS, FiveCrop
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.stego import PAIRS, Maps, draw_pairs, stego_loss, stego_settings
from dhr_lightning.methods.features.base import FeatureTask
from dhr_lightning.methods.features.images import equal_sizes, images_of
from dhr_lightning.methods.features.stego.spec import SPEC
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.uss import HEADS, USSNetwork
from dhr_lightning.ops.neighbours import nearest_neighbours
from dhr_lightning.ranks import gathered

log = logging.getLogger("dhr_lightning")


class USSTask(FeatureTask):
    """Fit a head on frozen features, without any label; predict features of the training images.

    Args:
        backbone: `patches` (training-free, made for the built-in data), a timm vision transformer, or an encoder of
            `models.backbones.build_encoder`, whose map before the last stage is taken.
        pretrained: `false`, `true` (by name) or a path; ignored by `patches`.
        head: `cluster_code` or `principal_axes` (both fitted in one pass), or `stego` (trained).
        cells: feature cells drawn for fitting, over the whole training set.
        patches: patches drawn for fitting `patches`, over the whole training set.
        stego: `preset` (a row of STEGO's published configuration) and what differs from it, see
            `losses.stego.StegoSettings`.
        **options: `dimension`, `scales`, `flip`, classes, optimiser and schedule, see `FeatureTask`.

    Source: STEGO (arXiv:2203.08414).
    Differs: neighbours are never crops of the same image, and are found without dropout.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        backbone: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = False,
        head: str = "stego",
        cells: int = 60_000,
        patches: int = 30_000,
        stego: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if head not in HEADS:
            raise ConfigError(f"Expected model.init_args.head to be one of {', '.join(HEADS)}, but got {head!r}.")
        self.network = USSNetwork(backbone, head, pretrained=pretrained, dimension=self.hparams.dimension)
        self.card = card_of(backbone, pretrained)
        self.automatic_optimization = False
        self._collected: list[Tensor] = []
        self.stego = stego_settings(**(stego or {}))
        self.crop = FiveCrop(self.stego.crop_size, self.stego.crop_ratio) if head == "stego" else None
        if self.crop and self.crop.crop_size % self.network.cell:
            raise ConfigError(
                f"Expected stego.crop_size to be a multiple of the {self.network.cell} pixels of a feature cell of "
                f"{backbone!r}, but got {self.crop.crop_size}."
            )
        self.augment, self.five_crop = self.crop is not None, self.crop

    def configure_optimizers(self) -> dict[str, Any] | None:
        """Adam-style training of the STEGO head; nothing to optimise for a fitted one."""
        return super().configure_optimizers() if self.crop else None

    @property
    def _phase(self) -> str:
        """What the running epoch does: fit the backbone, fit the head, or train the head."""
        if isinstance(self.network.backbone, PatchEncoder) and not bool(self.network.backbone.fitted):
            return "fit_backbone"
        return "train_head" if self.crop else "fit_head"

    def on_fit_start(self) -> None:
        """Check the number of epochs, and that STEGO has enough images."""
        wanted = int(self.hparams.backbone == "patches") + 1
        if 0 <= (self.trainer.max_epochs or 0) < wanted:
            raise ConfigError(
                f"This backbone and head need trainer.max_epochs >= {wanted}, but got {self.trainer.max_epochs}."
            )
        if self.crop:
            self._check_images()

    def _check_images(self) -> None:
        datamodule = self.trainer.datamodule
        images, batch = len(datamodule.records("train")), datamodule.batch_size
        if min(batch, images // self.trainer.world_size) < 2:
            raise ConfigError(
                f"STEGO compares the images of a batch, but a batch has {min(batch, images)} of {images} training "
                "images. Set data.batch_size >= 2."
            )
        if CROPS * (images - 1) < self.stego.neighbours:
            raise ConfigError(
                f"{images} training images have {CROPS * (images - 1)} crops of other images to be neighbours, but "
                f"model.init_args.stego.neighbours is {self.stego.neighbours}."
            )

    def on_train_epoch_start(self) -> None:
        """Find the neighbours of each crop for STEGO, once the backbone is ready."""
        datamodule = self.trainer.datamodule
        if self._phase == "train_head" and datamodule.neighbours is None:
            datamodule.set_neighbours(self._find_neighbours())

    @torch.no_grad()
    def _find_neighbours(self) -> Tensor:
        """Indices `(5 N, neighbours)` of the crops with the most similar mean feature."""
        loader, source = self.trainer.datamodule.crops_dataloader(self.crop), self.network.source
        batches = (images_of(batch, source) for batch in self.batches(loader, "neighbours"))
        mean = torch.cat([self.network.features(images).mean((2, 3)) for images in batches])
        image = torch.arange(len(mean), device=mean.device) // CROPS
        return nearest_neighbours(mean, image, self.stego.neighbours).cpu()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect what the running phase needs, or take one STEGO step."""
        if self._phase == "train_head":
            self._stego_step(batch, batch_idx)
            return
        generator = torch.Generator().manual_seed(7919 * self.current_epoch + batch_idx)
        for _, images in equal_sizes(batch, self.network.source):
            self._collect(images, generator)

    @torch.no_grad()
    def _collect(self, images: Tensor, generator: torch.Generator) -> None:
        """Draw patches or feature cells of images without padding."""
        fits_backbone = self._phase == "fit_backbone"
        total = self.hparams.patches if fits_backbone else self.hparams.cells
        share = -(-total // len(self.trainer.datamodule.records("train")))
        if fits_backbone:
            self._collected.append(self.network.backbone.sample_patches(images, share, generator))
            return
        cells = self.network.features(images).flatten(2)  # (B, F, N)
        index = torch.randint(cells.shape[-1], (share,), generator=generator).to(cells.device)
        self._collected.append(cells[:, :, index].transpose(1, 2).flatten(0, 1).float())

    def on_train_epoch_end(self) -> None:
        """Fit backbone or head to what was collected."""
        if not self._collected:
            return
        everywhere = torch.cat([part.cpu() for parts in gathered(self._collected) for part in parts]).to(self.device)
        self._collected = []
        target = self.network.backbone if self._phase == "fit_backbone" else self.network.head
        target.fit(everywhere, seed=self.trainer.datamodule.seed)

    def _stego_step(self, batch: Batch, batch_idx: int) -> None:
        sources = ("pixels", "neighbour") if self.network.source == "pixels" else ("image", "neighbour_image")
        both = torch.cat([images_of(batch, source) for source in sources])
        anchors, neighbours = self._maps(self.network.features(both).float())
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 is coarser than the shifts
            draw = draw_pairs(len(anchors.codes), self.stego, device=self.device)
            result = stego_loss(anchors, neighbours, draw, self.stego)
        loss = self.check_loss(result.loss, batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        self.log("train/loss_stego", loss, prog_bar=True, batch_size=len(anchors.codes))
        cosines = zip(PAIRS, result.cosines, strict=True)
        self.log_dict({f"train/cosine_{pair}": value for pair, value in cosines}, batch_size=len(anchors.codes))

    def _maps(self, features: Tensor) -> tuple[Maps, Maps]:
        """Anchors and neighbours; the features they are compared by lose channels of their own, as published."""
        maps = (self.network.head.dropout(features).chunk(2), self.network.code(features).chunk(2))
        anchors, neighbours = (Maps(*pair) for pair in zip(*maps, strict=True))
        return anchors, neighbours
