"""The classifier of `cam`; its CAMs come from images that climb the score of their class."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, check_keys
from dhr_lightning.methods.seeds.advcam.climbing import Climb, Pairs, climb, resized
from dhr_lightning.methods.seeds.advcam.spec import SPEC
from dhr_lightning.methods.seeds.cam.task import CAMTask
from dhr_lightning.models.classifier import CAMClassifier
from dhr_lightning.ops.cam import normalize_cam
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.resize import valid_cells


class AdvCAMTask(CAMTask):
    """Train on tags as `cam` does; predict CAMs of images that change against their loss.

    Args:
        climb: settings that differ from those of `climbing.Climb`.
        at_once: pairs of image and class that climb together; memory grows with it, the result does not change.
        **options: see `CAMTask`; prediction takes `2 * iterations` passes for each class, scale and image.

    Source: AdvCAM (arXiv:2103.08896) and its code.
    """

    spec = SPEC

    def __init__(self, *, climb: dict[str, Any] | None = None, at_once: int = 8, **options: Any) -> None:
        super().__init__(**options)
        if at_once < 1:
            raise ConfigError(f"Expected model.init_args.at_once >= 1, but got {at_once}.")
        check_keys(climb or {}, Climb.__dataclass_fields__, "climb")
        self.climb_settings = Climb(**(climb or {}))

    def compact_cam(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """See `CAMTask`."""
        size = tuple(side // self.hparams.cam_stride for side in batch["image"].shape[-2:])
        images, rows = classes.present.nonzero(as_tuple=True)
        with torch.inference_mode(False), torch.enable_grad():
            maps = torch.zeros(*classes.keys.shape, *size, device=self.device)
            image, valid = batch["image"].clone(), batch["valid"].clone()
            tags = (classes.keys - classes.offset).clone()
            for start in range(0, len(images), self.hparams.at_once):
                part = slice(start, start + self.hparams.at_once)
                own, row = images[part].clone(), rows[part].clone()
                pairs = Pairs(image[own], valid[own], tags[own, row])
                maps[own, row] = self._climbed(pairs, (int(size[0]), int(size[1]))).detach()
        return normalize_cam(maps, valid=valid_cells(batch["valid"], (int(size[0]), int(size[1]))))

    def _climbed(self, pairs: Pairs, size: tuple[int, int]) -> Tensor:
        network = cast("CAMClassifier", self.network)
        weight = network.classifier.weight[:, :, 0, 0]
        total = torch.zeros(len(pairs.tag), *size, device=pairs.image.device)
        for scale in self.hparams.scales:
            found = climb(network, weight, resized(pairs, scale), self.climb_settings, scale=scale)
            total = total + F.interpolate(found[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return total
