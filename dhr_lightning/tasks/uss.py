"""Stage 2: unsupervised segmentation (USS) features from a frozen backbone and a fitted or trained head."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.datamodule import Needs
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.stego import correspondence_loss, sample_points
from dhr_lightning.models.backbones import FrozenEncoder, is_encoder
from dhr_lightning.models.classifier import masked_mean
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.stego import ClusterCode, PrincipalAxes, StegoHead
from dhr_lightning.models.vit import FrozenViT
from dhr_lightning.tasks.base import BaseTask

_HEADS = {"cluster_code": ClusterCode, "principal_axes": PrincipalAxes, "stego": StegoHead}


class USSNetwork(torch.nn.Module):
    """Frozen backbone and head."""

    def __init__(self, backbone: str, head: str, *, pretrained: bool | str, dimension: int) -> None:
        super().__init__()
        self.backbone: PatchEncoder | FrozenEncoder | FrozenViT
        if backbone == "patches":
            self.backbone = PatchEncoder()
        elif is_encoder(backbone):
            self.backbone = FrozenEncoder(backbone, pretrained=pretrained)
        else:
            self.backbone = FrozenViT(backbone, pretrained=pretrained)
        self.head: ClusterCode | StegoHead | PrincipalAxes = _HEADS[head](self.backbone.out_channels, dimension)

    def features(self, batch: Batch) -> Tensor:
        """Frozen features `(B, F, h, w)` of a batch."""
        return self.backbone(batch["pixels"] if isinstance(self.backbone, PatchEncoder) else batch["image"])


class USSTask(BaseTask):
    """Fit a head on frozen features, without any label; predict features of the training images.

    Args:
        backbone: `patches` (training-free, made for the built-in data), a timm vision transformer, or an encoder of
            `models.backbones.build_encoder`, whose map before the last stage is taken.
        pretrained: `false`, `true` (by name) or a path; ignored by `patches`.
        head: `cluster_code` or `principal_axes` (both fitted in one pass), or `stego` (trained).
        dimension: channels D of the features.
        cells: feature cells drawn for fitting, over the whole training set.
        patches: patches drawn for fitting `patches`, over the whole training set.
        shifts: STEGO's b for intra, inter and negative pairs.
        weights: STEGO's weights of the same three.
        points: points sampled in each image, per axis.
        neighbours: nearest images that count as positives.
        **options: optimiser and schedule, see `BaseTask`.

    Source: STEGO (arXiv:2203.08414), with the ViT-B constants of its COCO-Stuff configuration.
    Differs: neighbours are drawn over whole images and the target features have no dropout.
    """

    step: ClassVar[str] = "uss"
    writes: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("uss",)}

    def __init__(
        self,
        class_names: list[str],
        has_background: bool = True,
        backbone: str = "vit_base_patch8_224.dino",
        pretrained: bool | str = False,
        head: str = "stego",
        dimension: int = 70,
        cells: int = 60_000,
        patches: int = 30_000,
        shifts: tuple[float, float, float] = (0.12, 0.2, 1.0),
        weights: tuple[float, float, float] = (0.1, 1.0, 0.15385),
        points: int = 11,
        neighbours: int = 7,
        **options: Any,
    ) -> None:
        super().__init__(class_names, has_background, **options)
        if head not in _HEADS:
            raise ConfigError(f"Expected model.init_args.head to be one of {', '.join(_HEADS)}, but got {head!r}.")
        self.save_hyperparameters()
        self.network = USSNetwork(backbone, head, pretrained=pretrained, dimension=dimension)
        self.automatic_optimization = False
        self._collected: list[Tensor] = []
        trained = head == "stego"
        self.needs = Needs(augment=trained, neighbours=trained, predict_splits=("train",))

    def configure_optimizers(self) -> dict[str, Any] | None:
        """Adam-style training of the STEGO head; nothing to optimise for a fitted one."""
        return super().configure_optimizers() if self.hparams.head == "stego" else None

    @property
    def _phase(self) -> str:
        """What the running epoch does: fit the backbone, fit the head, or train the head."""
        if isinstance(self.network.backbone, PatchEncoder) and not bool(self.network.backbone.fitted):
            return "fit_backbone"
        return "train_head" if isinstance(self.network.head, StegoHead) else "fit_head"

    def on_fit_start(self) -> None:
        """Check the number of epochs, and find each image's nearest neighbours for STEGO."""
        wanted = self._fitting_epochs + (self.hparams.head == "stego")
        if (self.trainer.max_epochs or 0) < wanted:
            raise ConfigError(
                f"This backbone and head need trainer.max_epochs >= {wanted}, but got {self.trainer.max_epochs}."
            )
        if self.hparams.head == "stego":
            self.trainer.datamodule.set_neighbours(self._find_neighbours())

    @property
    def _fitting_epochs(self) -> int:
        return int(self.hparams.backbone == "patches") + int(self.hparams.head != "stego")

    @torch.no_grad()
    def _find_neighbours(self) -> Tensor:
        """Indices `(N, neighbours)` of the images with the most similar mean feature."""
        self.eval()
        records = self.trainer.datamodule.records("train")
        means = [
            F.normalize(masked_mean(self.network.features(batch), batch["valid"]), dim=1)
            for batch in self.whole_batches(records, "neighbours")
        ]
        self.train()
        mean = torch.cat(means)
        count = min(self.hparams.neighbours, len(mean) - 1)
        rows = []
        for index in torch.split(torch.arange(len(mean), device=mean.device), 1024):
            alike = (mean[index] @ mean.T).scatter_(1, index[:, None], -torch.inf)  # no image is its own neighbour
            rows.append(alike.topk(count).indices.cpu())
        return torch.cat(rows)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect what the running phase needs, or take one STEGO step."""
        phase = self._phase
        if phase == "train_head":
            self._stego_step(batch, batch_idx)
            return
        images = len(self.trainer.datamodule.records("train"))
        total = self.hparams.patches if phase == "fit_backbone" else self.hparams.cells
        share = -(-total // images)
        generator = torch.Generator().manual_seed(7919 * self.current_epoch + batch_idx)
        with torch.no_grad():
            if phase == "fit_backbone":
                self._collected.append(self.network.backbone.sample_patches(batch["pixels"], share, generator))
            else:
                cells = self.network.features(batch).flatten(2)  # (B, F, N)
                index = torch.randint(cells.shape[-1], (share,), generator=generator).to(cells.device)
                self._collected.append(cells[:, :, index].transpose(1, 2).flatten(0, 1).float())

    def on_train_epoch_end(self) -> None:
        """Fit backbone or head to what was collected."""
        if not self._collected:
            return
        gathered = torch.cat(self._collected)
        self._collected = []
        target = self.network.backbone if self._phase == "fit_backbone" else self.network.head
        target.fit(gathered, seed=self.trainer.datamodule.seed)

    def _stego_step(self, batch: Batch, batch_idx: int) -> None:
        anchors = self.network.features(batch)
        partners = self.network.features({"pixels": batch["neighbour"], "image": batch["neighbour_image"]})
        codes, partner_codes = self.network.head(anchors), self.network.head(partners)
        loss = self.check_loss(self._loss(anchors, partners, codes, partner_codes), batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        self.log("train/loss_stego", loss, prog_bar=True, batch_size=len(codes))

    def _loss(self, anchors: Tensor, partners: Tensor, codes: Tensor, partner_codes: Tensor) -> Tensor:
        batch, count = len(anchors), self.hparams.points**2
        first, second = (torch.rand(batch, count, 2, device=anchors.device) * 2 - 1 for _ in range(2))
        shuffled = (torch.arange(batch, device=anchors.device) + int(torch.randint(1, max(2, batch), (1,)))) % batch
        at = sample_points(anchors, first), sample_points(codes, first)
        pairs = (
            at,
            (sample_points(partners, second), sample_points(partner_codes, second)),
            (sample_points(anchors[shuffled], second), sample_points(codes[shuffled], second)),
        )
        losses = [
            weight * correspondence_loss(at[0], features, at[1], code, shift=shift)
            for (features, code), weight, shift in zip(pairs, self.hparams.weights, self.hparams.shifts, strict=True)
        ]
        return torch.stack(losses).sum()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Features of whole images, padding cut off; for a network the mean of the image and its mirror."""
        code = self._code(batch)
        if not isinstance(self.network.backbone, PatchEncoder):
            mirrored: Batch = {"pixels": batch["pixels"].flip(-1), "image": batch["image"].flip(-1)}
            code = (code + self._code(mirrored).flip(-1)) / 2
        height, width = batch["pixels"].shape[-2:]
        result = []
        for features, geometry in zip(code, batch["geometry"], strict=True):
            rows = -(-geometry.size[0] * code.shape[-2] // height)
            columns = -(-geometry.size[1] * code.shape[-1] // width)
            result.append((features[:, :rows, :columns].cpu(),))
        return {"uss": result}

    def _code(self, batch: Batch) -> Tensor:
        return self.network.head(self.network.features(batch))
