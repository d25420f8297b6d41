"""A multi-label classifier whose class activation maps start everything."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch, Geometry, sample_features
from dhr_lightning.evaluation.metrics.tag_precision import TagPrecision
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.seeds.cam.spec import SPEC
from dhr_lightning.models.cards import card_of
from dhr_lightning.models.classifier import CAMClassifier, masked_mean, multi_scale_cam
from dhr_lightning.ops.cam import gather_classes, normalize_cam
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.resize import valid_cells
from dhr_lightning.ops.tag_pooling import pool_tags, tag_pooling


class CAMTask(BaseTask):
    """Train on tags; predict CAMs of the training images.

    Args:
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path.
        output_stride: 8 or 16.
        dilation: whether stages beyond the output stride are dilated, see `models.backbones.build_encoder`.
        scales: relative image sizes summed in the CAM.
        cam_stride: pixels per CAM cell on disk.
        pooling: how the map of a class becomes its logit in training and validation: `name` (`mean`, `topk`,
            `logsumexp`, `generalised_mean`) and its constants, see `ops.tag_pooling.TagPooling`; `null` for the mean.
        **options: classes, optimiser and schedule, see `BaseTask`.

    Source: CAM (arXiv:1512.04150); recipe of IRNet (arXiv:1904.05044).
    Differs: IRNet averages its maps over the whole padded crop, here padding has no vote.
    """

    spec = SPEC

    def __init__(
        self,
        *,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        output_stride: int = 16,
        dilation: bool = True,
        scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0),
        cam_stride: int = 4,
        pooling: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.pooling = tag_pooling(**(pooling or {}))
        self.network = self.build_network(
            backbone, pretrained=pretrained, output_stride=output_stride, dilation=dilation
        )
        self.card = card_of(backbone, pretrained)
        self.average_precision = TagPrecision(self.classes.num_tags)

    def build_network(self, backbone: str, **options: Any) -> nn.Module:
        """The classifier: an `encoder`, a `classifier` without bias on its last map, and whatever a method adds."""
        return CAMClassifier(backbone, self.classes.num_tags, **options)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> raw CAMs `(B, T, h, w)`."""
        return self.network(image)

    def image_logits(self, batch: Batch) -> Tensor:
        """Pooled maps `(B, T)` of the images of a batch; padding has no vote."""
        maps, valid = self.network(batch["image"]), batch["valid"]
        if self.pooling.name == "mean":
            return masked_mean(maps, valid)
        shares = F.adaptive_avg_pool2d(valid[:, None].float(), maps.shape[-2:])[:, 0]  # (B, h, w)
        return pool_tags(maps, shares, self.pooling)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Multi-label soft margin loss on the pooled maps."""
        logits = self.image_logits(batch)  # (B, T)
        loss = F.multilabel_soft_margin_loss(logits, batch["tags"])
        self.log("train/loss_cls", loss, prog_bar=True, batch_size=len(logits))
        return self.check_loss(loss, batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Tag loss and average precision; the ground truth is not used, and an image without tags shows no class."""
        logits = self.image_logits(batch).float()
        self.average_precision.update(logits, batch["tags"])
        loss = F.multilabel_soft_margin_loss(logits, batch["tags"])
        self.log("val/loss_cls", loss, batch_size=len(logits), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log `val/tag_map`, the mean over the classes that some image shows; nothing where no image has a tag."""
        found = self.average_precision.compute()
        if found is not None:
            self.log("val/tag_map", found, prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """CAMs `(keys, maps)` of a batch of whole images."""
        classes = self.tagged(batch)
        maps = self._of_images(self.compact_cam(batch, classes), batch)
        named = zip(classes.keys.cpu(), classes.present.cpu(), maps, strict=True)
        return {"cam": [(keys[present], one[present]) for keys, present, one in named]}

    def compact_cam(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """Normalised multi-scale CAMs `(B, K, h, w)` in [0, 1] of the tagged classes."""
        height, width = batch["image"].shape[-2:]
        size = (height // self.hparams.cam_stride, width // self.hparams.cam_stride)
        cam = gather_classes(self.all_maps(batch, size), classes)
        return normalize_cam(cam, valid=valid_cells(batch["valid"], size))

    def all_maps(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Maps `(B, T, *size)` >= 0 of every class, summed over scales and mirror, not normalised."""
        return multi_scale_cam(self.network, batch["image"], scales=tuple(self.hparams.scales), flip=True, size=size)

    def _of_images(self, cam: Tensor, batch: Batch) -> list[Tensor]:
        """Maps of each image alone: as many cells as touch it, evenly over the image and not over its canvas."""
        stride, canvas = self.hparams.cam_stride, (batch["pixels"].shape[-2], batch["pixels"].shape[-1])
        result = []
        for maps, place in zip(cam.cpu(), batch["geometry"], strict=True):
            height, width = place.size
            box = (0, 0, width, height)
            inside = Geometry(box, box, (1.0, 1.0), False, canvas)  # the image is a crop of its canvas
            grid = (-(-height // stride), -(-width // stride))
            result.append(sample_features(maps, inside, canvas=place.size, grid=grid))
        return result
