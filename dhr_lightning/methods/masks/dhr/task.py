"""Recursive learning on rebalanced masks (DHR)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.dhr.spec import SPEC
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.rebalancing import RebalancingTask
from dhr_lightning.methods.segmentation import SegmentationTask
from dhr_lightning.models.classifier import masked_mean, multi_scale_cam, published_cam
from dhr_lightning.models.segmenter import SegmenterOutput
from dhr_lightning.ops.cam import gather_classes, normalize_cam
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs

SEED_VIEWS = ("default", "paper")


class DHRTask(RebalancingTask, SegmentationTask):
    """Train segmentation and classification together on masks that this network's own features rebalance.

    The masks are regenerated between epochs by the refresh callback, which calls `pseudo_masks`.

    Args:
        seed_view: CAM behind the seeds. `default`: sum over `cam_scales` and their mirrors on a grid twice as fine as
            the features; `paper`: the image as it is, at stride 16.
        cam_scales: relative image sizes of the CAM behind the seeds, each with its mirror; for `default` only.
        weight_cls: weight of the classification loss beside the segmentation loss.
        **options: mask step, see `RebalancingTask`; network, training and prediction, see `SegmentationTask`.

    Source: DHR (arXiv:2404.00380), Sec. 3.
    Differs: masks are regenerated between epochs, in the geometry of the whole image, not at every step on the crop.
        Seeds come from several views by default, see docs/method.md.
    """

    spec = SPEC
    cam_head = True

    def __init__(
        self,
        *,
        seed_view: str = "default",
        cam_scales: tuple[float, ...] = (1.0, 1.5),
        weight_cls: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if seed_view not in SEED_VIEWS:
            raise ConfigError(
                f"Expected model.init_args.seed_view to be {' or '.join(SEED_VIEWS)}, but got {seed_view!r}."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the network on the current masks plus multi-label soft margin on the tags."""
        output = self.network(batch["image"])
        loss_seg = self.network_loss(output, self.targets(output, batch))
        loss_cls = F.multilabel_soft_margin_loss(masked_mean(output.cam, batch["valid"]), batch["tags"])
        size = len(batch["image"])
        self.log_dict({"train/loss_seg": loss_seg, "train/loss_cls": loss_cls}, prog_bar=True, batch_size=size)
        return self.check_loss(loss_seg + self.hparams.weight_cls * loss_cls, batch, batch_idx)

    def targets(self, output: SegmenterOutput, batch: Batch) -> Tensor:
        """Masks `(B, H, W)` to learn: those of the last refresh."""
        return batch["inputs"]["masks"]

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks at image size from all classes: tags are unknown at test time."""
        return {"prediction": cut_masks(self.inference(self.network, batch), batch)}

    @torch.no_grad()
    def mask_inputs(self, batch: Batch) -> RebalanceInputs:
        """Initial masks, compact CAMs and features of whole images, as `pseudo_masks` rebalances them.

        Args:
            batch: as that of `pseudo_masks`.
        """
        image = batch["image"]
        features = self.network.encoder(image)
        return self.inputs_of(batch, self._seed_cam(image, features), features)

    def inputs_of(self, batch: Batch, cam: Tensor, features: list[Tensor]) -> RebalanceInputs:
        """Inputs of the mask step from a network's maps of a batch.

        Args:
            batch: images with tags, first masks and features of the USS network.
            cam: `(B, T, h, w)` class activation maps, not negative, not normalised.
            features: of the encoder, finest first.
        """
        classes = self.image_classes(batch)
        cell = cam.shape[-2:]
        valid = F.interpolate(batch["valid"][:, None].float(), cell, mode="nearest")[:, 0] > 0
        return RebalanceInputs(
            batch["pixels"],
            batch["inputs"]["masks"],
            normalize_cam(gather_classes(cam, classes), valid=valid),
            classes,
            uss=batch["inputs"].get("features") if self.rebalance_settings.uss else None,
            wss=[features[-2].detach().float(), features[-1].detach().float()],
        )

    def published_seed_cam(self, last: Tensor) -> Tensor:
        """Class activation maps of one view at stride 16 from the last feature map, see `published_cam`."""
        return published_cam(self.network.classifier, last, stride=self.network.divisor)

    def _seed_cam(self, image: Tensor, features: list[Tensor]) -> Tensor:
        """Class activation maps `(B, T, h, w)` behind the seeds, not negative, not normalised."""
        last, classifier, encoder = features[-1], self.network.classifier, self.network.encoder
        if self.hparams.seed_view == "paper":
            return self.published_seed_cam(last)
        return multi_scale_cam(  # the plain view has been encoded already
            lambda view: classifier((features if view is image else encoder(view))[-1]),
            image,
            scales=tuple(self.hparams.cam_scales),
            flip=True,
            size=(last.shape[-2] * 2, last.shape[-1] * 2),
        )
