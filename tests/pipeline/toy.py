"""A method as another package would bring it: a convolution that learns tags and shows where."""

from typing import Any

import torch
from torch import Tensor, nn

from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="toy",
    task="tests.pipeline.toy.ToyTask",
    about="one convolution on tags -> class activation maps",
    writes={"cam": Write(("train",))},
    predict_only=("sharpness",),
    label="Toy",
)
NO_SPEC = "a text"


class ToyTask(BaseTask):
    """Maps of one convolution.

    Args:
        sharpness: factor of the maps before they are squeezed into [0, 1].
    """

    spec = SPEC

    def __init__(self, *, sharpness: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.network = nn.Conv2d(3, self.classes.num_tags, 3, padding=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.multilabel_soft_margin_loss(self.network(batch["image"]).mean((2, 3)), batch["tags"])

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        maps = torch.sigmoid(self.hparams.sharpness * self.network(batch["image"]))  # (B, T, H, W)
        found = []
        for tags, scores, place in zip(batch["tags"], maps, batch["geometry"], strict=True):
            present = tags.nonzero()[:, 0]
            cam = scores[present, : place.size[0], : place.size[1]]
            found.append((present.cpu() + self.classes.offset, cam.cpu()))
        return {"cam": found}
