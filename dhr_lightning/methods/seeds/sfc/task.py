"""A classifier whose maps are calibrated by class prototypes; predict the sum of both."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.seeds.sfc.bank import Crops, ImageBank
from dhr_lightning.methods.seeds.sfc.losses import distribution_coefficients, prototype_loss, scale_loss
from dhr_lightning.methods.seeds.sfc.network import Parts, SFCNetwork
from dhr_lightning.methods.seeds.sfc.spec import SPEC
from dhr_lightning.models.classifier import masked_mean
from dhr_lightning.ops.cam import gather_classes, normalize_cam
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.resize import valid_cells
from dhr_lightning.ranks import everywhere


class SFCTask(CAMTask):
    """Train on tags with a bank of images, and on the agreement of two kinds of maps at two sizes.

    Args:
        bank: images that are added to a batch (N_IBR), 0 for none.
        bank_classes: classes of such an image on average (C_IBR of the published coefficients).
        prototype_weight: of the loss of classifier against prototypes.
        scale_weight: of the loss between sizes.
        proto: weight of the prototypes' map beside that of the classifier in the CAM; the paper has 1, the published
            scripts 0.7 and 0.3.
        **options: see `CAMTask`.

    Source: SFC (AAAI 2024), Eq. 1-9, and its code.
    Differs: see `network.start_maps` and `bank.ImageBank`; maps at the smaller size need no prototypes; at prediction,
        too, only tags take part; the background is taken off the maps, see `above_background`.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        bank: int = 4,
        bank_classes: float = 3.0,
        prototype_weight: float = 1.6,
        scale_weight: float = 0.8,
        proto: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if min(bank, prototype_weight, scale_weight, proto) < 0:
            raise ConfigError(
                f"Expected bank and all weights >= 0, but got {bank}, {prototype_weight}, {scale_weight} and {proto}."
            )
        self.bank = ImageBank(self.classes.num_tags, 0)
        self.register_buffer("coefficients", torch.ones(self.classes.num_tags))

    def build_network(self, backbone: str, **options: Any) -> nn.Module:
        """See `CAMTask`."""
        return SFCNetwork(backbone, self.classes.num_tags, **options)

    def on_fit_start(self) -> None:
        """Weigh the classes by how often the tags name them; the bank is empty, unless a run is being resumed."""
        data, h = self.trainer.datamodule, self.hparams
        if self.trainer.ckpt_path is None:
            self.bank = ImageBank(self.classes.num_tags, data.augmentation.crop_size).to(self.device)
        counts = torch.zeros(self.classes.num_tags)
        records = data.records("train")
        for record in records:
            counts[[tag - self.classes.offset for tag in record.tags]] += 1
        iterations = math.floor(len(records) / data.batch_size)
        resampled = h.bank * h.bank_classes * iterations / self.classes.num_tags
        self.coefficients.copy_(distribution_coefficients(counts, resampled=resampled))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the size of the bank from the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self.bank = ImageBank(self.classes.num_tags, checkpoint["state_dict"]["bank.pixels"].shape[-1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Tag loss at two sizes, and the agreement of the maps."""
        image, valid, tags = self._with_bank(batch)
        network, h = cast("SFCNetwork", self.network), self.hparams
        size = (max(16, image.shape[-2] // 2), max(16, image.shape[-1] // 2))
        reduced = F.interpolate(image, size, mode="bilinear", align_corners=True)
        large, small = network.parts(image), network.parts(reduced)
        inside = valid_cells(valid, size)
        logits = (masked_mean(large.raw, valid), masked_mean(small.raw, inside))
        tag_loss = sum(F.multilabel_soft_margin_loss(one, tags) for one in logits) / 2
        by_weights, by_prototypes = network.maps(large, tags, _cells(valid, large))
        of_small, _ = network.maps(small, tags, _cells(inside, small), prototypes=False)
        apart = prototype_loss(by_weights, cast("Tensor", by_prototypes), self.coefficients)
        between = scale_loss(by_weights, of_small, tags, self.coefficients)
        loss = tag_loss + h.prototype_weight * apart + h.scale_weight * between
        self.log_dict({"train/loss_cls": tag_loss, "train/loss_proto": apart, "train/loss_scale": between},
                      prog_bar=True, batch_size=len(image))  # fmt: skip
        return self.check_loss(loss, batch, batch_idx)

    def _with_bank(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images, valid pixels and tags of a batch, and of what the bank adds."""
        image, valid, tags = batch["image"], batch["valid"], batch["tags"]
        if self.hparams.bank == 0:
            return image, valid, tags
        self.bank.update(Crops(*map(everywhere, (batch["pixels"], valid, tags))))
        drawn = self.bank.draw(self.hparams.bank)
        more = normalize(drawn.pixels, drawn.valid, self.card).to(image.dtype)
        return torch.cat([image, more]), torch.cat([valid, drawn.valid]), torch.cat([tags, drawn.tags.to(tags.dtype)])

    def compact_cam(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """See `CAMTask`: both maps, each divided by its maximum, the image and its mirror together at every scale."""
        size = tuple(side // self.hparams.cam_stride for side in batch["image"].shape[-2:])
        grid = (int(size[0]), int(size[1]))
        totals = [torch.zeros((), device=self.device)] * 2
        for scale in self.hparams.scales:
            found = self._maps_at(batch, scale)
            totals = [
                total + F.interpolate(maps, grid, mode="bilinear", align_corners=False)
                for total, maps in zip(totals, found, strict=True)
            ]
        inside = valid_cells(batch["valid"], grid)
        by_weights, by_prototypes = (gather_classes(above_background(one, inside), classes) for one in totals)
        return normalize_cam(by_weights + self.hparams.proto * by_prototypes, valid=inside)

    def _maps_at(self, batch: Batch, scale: float) -> tuple[Tensor, Tensor]:
        network, image = cast("SFCNetwork", self.network), batch["image"]
        valid = batch["valid"]
        if scale != 1.0:
            size = [max(16, round(side * scale)) for side in image.shape[-2:]]
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
            valid = F.interpolate(valid[:, None].float(), size, mode="nearest")[:, 0] > 0.5
        parts = network.parts(image).plus_mirrored(network.parts(image.flip(-1)))
        by_weights, by_prototypes = network.maps(parts, batch["tags"], _cells(valid, parts))
        return by_weights, cast("Tensor", by_prototypes)


def above_background(maps: Tensor, valid: Tensor) -> Tensor:
    """What a class exceeds half the background by: `(B, 1 + T, h, w)` >= 0 -> `(B, T, h, w)` in [0, 1].

    All maps are divided by their maximum first. The code labels a pixel c if `2 M_c > M_0 + 0.4`, which is a constant
    background score of 0.2 for the maps that leave here.
    """
    scaled = normalize_cam(maps, valid=valid)
    return (scaled[:, 1:] - scaled[:, :1] / 2).relu()


def _cells(valid: Tensor, parts: Parts) -> Tensor:
    return valid_cells(valid, (parts.raw.shape[-2], parts.raw.shape[-1]))
