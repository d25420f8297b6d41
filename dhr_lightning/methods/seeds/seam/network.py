"""A classifier whose maps are refined by the correlation of pixels."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.classifier import CAMClassifier
from dhr_lightning.ops.pixel_correlation import pixel_correlation
from dhr_lightning.ops.resize import valid_cells

_LOW, _MIDDLE = 64, 128


class SEAMNetwork(CAMClassifier):
    """CAM classifier with dropout, and a pixel correlation module on the maps before the last one.

    Args:
        backbone: see `build_encoder`.
        num_tags: number of foreground classes T.
        dropout: share of the channels of the last map that are left out in training, in [0, 1).
        **options: see `CAMClassifier`.

    Source: SEAM (arXiv:2004.04581) and its code, on any encoder.
    Differs: without the channel of the background, which no loss trains there.
    """

    def __init__(self, backbone: str, num_tags: int, *, dropout: float = 0.5, **options: Any) -> None:
        super().__init__(backbone, num_tags, **options)
        low, middle = (int(size) for size in cast("list[int]", self.encoder.out_channels)[-3:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.low, self.middle = (
            nn.Conv2d(size, width, 1, bias=False) for size, width in ((low, _LOW), (middle, _MIDDLE))
        )
        self.embed = nn.Conv2d(_LOW + _MIDDLE + 3, _LOW + _MIDDLE, 1, bias=False)
        for layer in (self.low, self.middle):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> raw class activation maps `(B, T, h, w)`."""
        return self.classifier(self.dropout(self.encoder(image)[-1]))

    def both(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw maps `(B, T, h, w)`, and refined ones `(B, 1 + T, h, w)` in [0, 1] with the background first.

        The refined maps train the module alone: neither the maps that go into it nor the encoder get their gradient.

        Args:
            image: `(B, 3, H, W)` normalised.
            valid: `(B, H, W)` bool, pixels inside the image.
        """
        features = self.encoder(image)
        raw = self.classifier(self.dropout(features[-1]))
        grid = (raw.shape[-2], raw.shape[-1])
        parts = [F.relu(self.low(features[-3].detach())), F.relu(self.middle(features[-2].detach())), image]
        parts = [F.interpolate(one, grid, mode="bilinear", align_corners=True) for one in parts]
        inside = None if valid is None else valid_cells(valid, grid)
        return raw, pixel_correlation(strongest_maps(raw, inside), self.embed(torch.cat(parts, dim=1)), valid=inside)


@torch.no_grad()
def strongest_maps(raw: Tensor, valid: Tensor | None = None) -> Tensor:
    """Background and, at each pixel, its strongest class alone: `(B, T, h, w)` -> `(B, 1 + T, h, w)` in [0, 1].

    Cells that are not `valid`, `(B, h, w)` bool, set no maximum.

    Source: `max_norm` of the code of SEAM (arXiv:2004.04581).
    """
    positive = raw.float().relu() if valid is None else raw.float().relu() * valid[:, None]
    normal = (positive - 1e-5).relu() / (positive.amax((2, 3), keepdim=True) + 1e-5)
    highest = normal.amax(1, keepdim=True)
    return torch.cat([1 - highest, torch.where(normal == highest, normal, 0.0)], dim=1)
