"""Features in which pixels of one class are alike."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.backbones import build_encoder

STRIDE = 8
_WIDTHS = (64, 128, 256)


class AffinityNetwork(nn.Module):
    """The last three feature maps of an encoder, reduced, joined and mixed at stride 8.

    Args:
        backbone: see `build_encoder`.
        pretrained: see `build_encoder`.
        output_stride: see `build_encoder`.
        dilation: see `build_encoder`.

    Source: AffinityNet of PSA (arXiv:1803.10464): 64, 128 and 256 channels, ELU.
    Differs: on any encoder; maps of another stride are brought to stride 8.
    """

    def __init__(
        self, backbone: str, *, pretrained: bool | str = False, output_stride: int = 8, dilation: bool = True
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(backbone, pretrained=pretrained, output_stride=output_stride, dilation=dilation)
        channels = [int(size) for size in cast("list[int]", self.encoder.out_channels)[-3:]]
        self.reduce = nn.ModuleList(
            nn.Conv2d(size, width, 1, bias=False) for size, width in zip(channels, _WIDTHS, strict=True)
        )
        self.mix = nn.Conv2d(sum(_WIDTHS), sum(_WIDTHS), 1, bias=False)
        for layer in (*self.reduce, self.mix):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised -> `(B, 448, ceil(H / 8), ceil(W / 8))`."""
        grid = (-(-image.shape[-2] // STRIDE), -(-image.shape[-1] // STRIDE))
        reduced = [F.elu(layer(one)) for layer, one in zip(self.reduce, self.encoder(image)[-3:], strict=True)]
        reduced = [
            one if one.shape[-2:] == grid else F.interpolate(one, grid, mode="bilinear", align_corners=False)
            for one in reduced
        ]
        return F.elu(self.mix(torch.cat(reduced, dim=1)))
