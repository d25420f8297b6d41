"""Train affinities on confident labels of CAMs; predict masks by a walk along them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.propagation.affinity import AffinityTask
from dhr_lightning.methods.propagation.psa.network import STRIDE, AffinityNetwork
from dhr_lightning.methods.propagation.psa.spec import SPEC
from dhr_lightning.ops.affinity import feature_affinity, separation
from dhr_lightning.ops.cam import background_score
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.confident import SCORE_CRF, confident_powers
from dhr_lightning.ops.resize import valid_cells


class PSATask(AffinityTask):
    """AffinityNet of PSA and its random walk.

    Args:
        output_stride: of the encoder, 8 or 16.
        dilation: see `models.backbones.build_encoder`.
        low: exponent of the background score whose objects are confident, > 0.
        high: exponent of the background score whose background is confident, >= `low`.
        background_exponent: of the background score that walks, > 0.
        **options: see `AffinityTask`; the paper's are `radius` 5, `beta` 8, `steps` 256.

    Source: PSA (arXiv:1803.10464) and its code, constants included.
    Differs: labels lie on the grid of stride 8 of the whole image before a crop is scaled.
    """

    spec = SPEC
    stride: ClassVar[int] = STRIDE

    def __init__(
        self,
        *,
        output_stride: int = 8,
        dilation: bool = True,
        low: float = 4.0,
        high: float = 32.0,
        background_exponent: float = 16.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < low <= high or background_exponent <= 0:
            raise ConfigError(
                "Expected 0 < model.init_args.low <= high and background_exponent > 0, but got "
                f"{low}, {high} and {background_exponent}."
            )
        self.refiner = self.build_refiner(SCORE_CRF)
        h = self.hparams
        self.network = AffinityNetwork(
            h.backbone, pretrained=h.pretrained, output_stride=output_stride, dilation=dilation
        )

    def confident(self, batch: Batch, classes: ImageClasses) -> Tensor:
        """See `AffinityTask`."""
        powers = (self.hparams.low, self.hparams.high)
        return confident_powers(batch["pixels"], batch["inputs"]["cam"], classes, powers=powers, refine=self.refiner)

    def affinity(self, image: Tensor, valid: Tensor, *, radius: int) -> Tensor:
        """See `AffinityTask`."""
        return feature_affinity(self.network(image), radius=radius)

    def walked(self, batch: Batch, cam: Tensor) -> tuple[Tensor, Tensor]:
        """See `AffinityTask`; background and tags walk together. Boundaries are cells apart from their neighbours."""
        scores = self.cells_of(
            torch.cat([background_score(cam, exponent=self.hparams.background_exponent), cam], dim=1)
        )
        inside = valid_cells(batch["valid"], (scores.shape[-2], scores.shape[-1]))
        radius = self.hparams.radius
        affinity = self.affinity(batch["image"], batch["valid"], radius=radius)
        return self.walk(scores, affinity, inside), separation(affinity, radius=radius, valid=inside)
