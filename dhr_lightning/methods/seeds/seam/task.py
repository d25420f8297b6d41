"""A classifier whose maps are the same at every scale; predict its refined CAMs."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.methods.seeds.seam.losses import View, lowest_activation, seam_losses
from dhr_lightning.methods.seeds.seam.network import SEAMNetwork
from dhr_lightning.methods.seeds.seam.spec import SPEC
from dhr_lightning.models.classifier import masked_mean, multi_scale_cam
from dhr_lightning.ops.resize import valid_cells


class SEAMTask(CAMTask):
    """Train on tags at two scales; predict the CAMs that pixel correlation has refined.

    Args:
        small: relative size of the second view, in (0, 1).
        hard: share of the largest differences that count, see `losses.seam_losses`.
        lowest: weight of `losses.lowest_activation`, which the code has and the paper has not; 0 for the paper.
        **options: see `CAMTask`.

    Source: SEAM (arXiv:2004.04581) and its code: both views share the network, all weights are 1.
    Differs: on any encoder; the maps are compared at the resolution of the small view without a detour over that of the
        image; padding has no vote.
    """

    spec = SPEC

    def __init__(self, *, small: float = 0.3, hard: float = 0.2, lowest: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if not (0 < small < 1 and 0 < hard <= 1 and lowest >= 0):
            raise ConfigError(
                f"Expected small in (0, 1), hard in (0, 1] and lowest >= 0, but got {small}, {hard} and {lowest}."
            )

    def build_network(self, backbone: str, **options: Any) -> nn.Module:
        """See `CAMTask`."""
        return SEAMNetwork(backbone, self.classes.num_tags, **options)

    def view(self, image: Tensor, valid: Tensor) -> tuple[View, Tensor]:
        """Maps of an image `(B, 3, H, W)` with valid pixels `(B, H, W)`, and logits of its tags `(B, T)`."""
        raw, refined = cast("SEAMNetwork", self.network).both(image, valid)
        return View(raw, refined), masked_mean(raw, valid)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Tag loss at two sizes, and both equivariant losses."""
        image, valid, tags, h = batch["image"], batch["valid"], batch["tags"], self.hparams
        size = (max(32, round(image.shape[-2] * h.small)), max(32, round(image.shape[-1] * h.small)))
        reduced = F.interpolate(image, size, mode="bilinear", align_corners=True)
        inside = valid_cells(valid, size)
        (large, logits), (small, small_logits) = self.view(image, valid), self.view(reduced, inside)
        tag_loss = sum(F.multilabel_soft_margin_loss(one, tags) for one in (logits, small_logits)) / 2
        lowest = (lowest_activation(large.refined, tags) + lowest_activation(small.refined, tags)) / 2
        er, ecr = seam_losses(large.resized(size), small.resized(size), tags, valid=inside, hard=h.hard)
        loss = tag_loss + h.lowest * lowest + er + ecr
        self.log_dict({"train/loss_cls": tag_loss, "train/loss_er": er, "train/loss_ecr": ecr}, prog_bar=True,
                      batch_size=len(image))  # fmt: skip
        return self.check_loss(loss, batch, batch_idx)

    def all_maps(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """See `CAMTask`: refined maps without the background."""

        def refined(view: Tensor) -> Tensor:
            maps: Tensor = cast("SEAMNetwork", self.network).both(view[:, :3], view[:, 3] > 0.5)[1]
            return maps[:, 1:]

        both = torch.cat([batch["image"], batch["valid"][:, None]], dim=1)  # the mask is scaled and mirrored alike
        return multi_scale_cam(refined, both, scales=tuple(self.hparams.scales), flip=True, size=size)
