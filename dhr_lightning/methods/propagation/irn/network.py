"""Boundaries from the feature maps of a frozen encoder."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.backbones import build_encoder

STRIDE = 4
_CHANNELS, _GROUPS = 32, 4


class BoundaryNetwork(nn.Module):
    """Five feature maps, each reduced, normalised in groups and brought to stride 4, then one logit.

    The encoder stays as it is loaded and in evaluation mode.

    Args:
        backbone: see `build_encoder`.
        pretrained: see `build_encoder`.
        output_stride: see `build_encoder`.
        dilation: see `build_encoder`.

    Source: edge branch of IRNet (arXiv:1904.05044).
    """

    def __init__(
        self, backbone: str, *, pretrained: bool | str = False, output_stride: int = 16, dilation: bool = False
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(backbone, pretrained=pretrained, output_stride=output_stride, dilation=dilation)
        self.encoder.requires_grad_(False).eval()  # Lightning starts to train without a call of `train`
        channels = [int(size) for size in cast("list[int]", self.encoder.out_channels)[1:]]
        self.reduce = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(size, _CHANNELS, 1, bias=False), nn.GroupNorm(_GROUPS, _CHANNELS), nn.ReLU(inplace=True)
            )
            for size in channels
        )
        self.head = nn.Conv2d(_CHANNELS * len(channels), 1, 1)

    def train(self, mode: bool = True) -> "BoundaryNetwork":
        """Set the mode of all but the encoder."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised -> logits of a boundary `(B, 1, ceil(H / 4), ceil(W / 4))`."""
        grid = (-(-image.shape[-2] // STRIDE), -(-image.shape[-1] // STRIDE))
        with torch.no_grad():
            maps = [_coarse(one, grid) for one in self.encoder(image)[1:]]
        reduced = [
            F.interpolate(layer(one), grid, mode="bilinear", align_corners=False)
            for layer, one in zip(self.reduce, maps, strict=True)
        ]
        return self.head(torch.cat(reduced, dim=1))


def _coarse(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Feature maps finer than the grid, such as those of a stem, after the pooling that follows them."""
    while maps.shape[-2] > grid[0] or maps.shape[-1] > grid[1]:
        maps = F.max_pool2d(maps, 3, 2, 1)
    return maps
