"""What IRNet and PSA share: confident labels of the CAMs teach affinities, along which the CAMs walk."""

import logging
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch, sample_features
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.losses.affinity import affinity_loss
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.memory import one_by_one_if_needed
from dhr_lightning.methods.refinement import RefiningTask
from dhr_lightning.methods.segmentation import initialise
from dhr_lightning.models.cards import card_of
from dhr_lightning.ops.affinity import random_walk
from dhr_lightning.ops.cam import labels_from_scores
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.resize import resize_maps, valid_cells

log = logging.getLogger("dhr_lightning")
Labels = npt.NDArray[np.uint8]


class AffinityTask(RefiningTask):
    """Base of the propagations with a network of affinities.

    Before the first epoch the CAMs of all training images become confident labels, kept in memory at the stride of the
    network (some 12 kB for an image of 500 px at stride 4); a resumed run makes them again.

    Args:
        backbone: encoder name, see `models.backbones.build_encoder`.
        pretrained: `false`, `true` (ImageNet, by name) or a path; the step read as `init` goes before it.
        fit_radius: pairs up to this distance in cells learn.
        radius: pairs up to this distance walk.
        beta: exponent of the affinities in the walk.
        steps: of the walk.
        **options: refinement of the confident labels, see `RefiningTask`; classes, optimiser and schedule.
    """

    stride: ClassVar[int]

    def __init__(
        self,
        *,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        fit_radius: int = 5,
        radius: int = 5,
        beta: float = 8.0,
        steps: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not self.classes.has_background:
            raise ConfigError(
                f"{self.spec.label} needs a background class, which this dataset lacks. Use crf or pamr in its place."
            )
        for name, least, value in (("fit_radius", 2, fit_radius), ("radius", 2, radius), ("steps", 1, steps)):
            if value < least:
                raise ConfigError(f"Expected model.init_args.{name} >= {least}, but got {value}.")
        self.card = card_of(backbone, pretrained)
        self._labels: dict[str, Labels] = {}

    def confident(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """Labels `(B, H, W)` of whole images with their CAMs: class values, 255 where unsure."""
        raise NotImplementedError

    def affinity(self, image: Tensor, valid: Tensor, *, radius: int) -> Tensor:
        """Affinities `(B, P, h, w)` of the cells of images `(B, 3, H, W)` with valid pixels `(B, H, W)`."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Take over the encoder, unless a run is being resumed, and label the training images."""
        initialise(self, keys=("encoder",))
        records = self.trainer.datamodule.records("train")
        log.info("%s: confident labels of %d images", self.step, len(records))
        self._labels = {}
        with torch.no_grad():
            for batch in self.whole_batches(records, f"{self.step}: confident labels", when="refresh"):
                self._keep(batch, self.confident(batch, self.tagged(batch)))
        if not any((labels[labels != self.classes.ignore_index] > 0).any() for labels in self._labels.values()):
            raise MaskError(
                f"No pixel of any image is confidently an object, so {self.spec.label} has nothing to learn from. "
                "Lower the foreground threshold, or look at the CAMs in the report."
            )

    def _keep(self, batch: Batch, labels: Tensor) -> None:
        middle = self.stride // 2
        host = labels.to(torch.uint8).cpu()
        for image_id, one, place in zip(batch["id"], host, batch["geometry"], strict=True):
            height, width = place.size
            rows, columns = (torch.arange(-(-side // self.stride)) * self.stride + middle for side in (height, width))
            self._labels[image_id] = one[rows.clamp(max=height - 1)][:, columns.clamp(max=width - 1)].numpy()

    def crop_labels(self, batch: Batch) -> Tensor:
        """Confident labels `(B, h, w)` of training crops; 255 outside the image."""
        canvas = (batch["pixels"].shape[-2], batch["pixels"].shape[-1])
        grid = (-(-canvas[0] // self.stride), -(-canvas[1] // self.stride))
        found = []
        for image_id, place in zip(batch["id"], batch["geometry"], strict=True):
            shifted = torch.from_numpy(self._labels[image_id]).float()[None] + 1  # 0 is outside
            found.append(sample_features(shifted, place, canvas=canvas, grid=grid, mode="nearest")[0])
        labels = torch.stack(found).round().long() - 1
        return torch.where(labels < 0, self.classes.ignore_index, labels).to(batch["image"].device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the pairs of confident pixels."""
        radius = self.hparams.fit_radius
        affinity = self.affinity(batch["image"], batch["valid"], radius=radius)
        loss = affinity_loss(affinity, self.crop_labels(batch), radius=radius, ignore_index=self.classes.ignore_index)
        self.log("train/loss_aff", loss, prog_bar=True, batch_size=len(batch["image"]))
        return self.check_loss(loss, batch, batch_idx)

    @one_by_one_if_needed
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Masks of a batch of whole images."""
        masks, boundary = self.masks(batch, batch["inputs"]["cam"])
        grids = [tuple(-(-side // self.stride) for side in place.size) for place in batch["geometry"]]
        strength = (255 * boundary).round().to(torch.uint8).cpu()
        cut = [(one[:height, :width],) for one, (height, width) in zip(strength, grids, strict=True)]
        return {"mask": cut_masks(masks, batch), "boundary": cut}

    def masks(self, batch: Batch, cam: Tensor) -> tuple[Tensor, Tensor]:
        """Masks after the walk, and the boundaries that it met.

        Args:
            batch: whole images.
            cam: `(B, K, H, W)` CAMs of the tags in ascending order.

        Returns:
            `(B, H, W)` class values, and `(B, h, w)` in [0, 1] on the grid of the network.
        """
        classes = self.tagged(batch)
        walked, boundary = self.walked(batch, cam)  # (B, 1 + K, h, w), (B, h, w)
        inside = valid_cells(batch["valid"], (walked.shape[-2], walked.shape[-1]))
        scores = resize_maps(walked, (cam.shape[-2], cam.shape[-1]), valid=inside)
        every = classes.with_background()
        return labels_from_scores(scores, every.keys, present=every.present), boundary

    def walked(self, batch: Batch, cam: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `(B, 1 + K, h, w)` of background and tags after the walk; strength of boundaries `(B, h, w)`."""
        raise NotImplementedError

    def walk(self, scores: Tensor, affinity: Tensor, valid: Tensor, *, boundary: Tensor | None = None) -> Tensor:
        """Scores `(B, K, h, w)` after the walk of this task."""
        h = self.hparams
        return random_walk(
            scores, affinity, radius=h.radius, beta=h.beta, steps=h.steps, valid=valid, boundary=boundary
        )

    def cells_of(self, cam: Tensor) -> Tensor:
        """CAMs `(B, K, H, W)` averaged to the cells of the network."""
        grid = (-(-cam.shape[-2] // self.stride), -(-cam.shape[-1] // self.stride))
        return F.adaptive_avg_pool2d(cam, grid)
