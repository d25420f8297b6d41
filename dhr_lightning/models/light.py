"""Light segmentation network on stored features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.standardize import StandardizedModule
from dhr_lightning.ops._checks import check_dims, check_positive, check_range, check_shape


class LightSegmenter(StandardizedModule):
    """Sum of projected taps, upsampled and smoothed by a few depthwise blocks.

    Nothing in it depends on the other images of a batch, and no normalisation on the other cells of an image.

    Args:
        channels: channels of each tap in the order in which they are stored; their sum is D.
        num_classes: C, background included.
        width: channels inside.
        blocks: residual blocks after upsampling, >= 0.
        upsample: cells of the result for one cell of the features, per axis.
        dropout: share of the channels that are left out before the classifier in training, in [0, 1).

    Raises:
        ValueError: if there is no tap or a value is out of range.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        num_classes: int,
        *,
        width: int = 192,
        blocks: int = 2,
        upsample: int = 2,
        dropout: float = 0.0,
    ) -> None:
        if not channels:
            raise ValueError("Expected a tap in `channels` at least, but got none.")
        sizes = {**{f"channels[{tap!r}]": size for tap, size in channels.items()}, "num_classes": num_classes}
        for name, size in {**sizes, "width": width, "upsample": upsample, "blocks + 1": blocks + 1}.items():
            check_positive(name, size)
        check_range("dropout", dropout, 0.0, 0.999)
        super().__init__(sum(channels.values()))
        self.channels = dict(channels)
        self.upsample = upsample
        # a list, because a dictionary of modules may not have the key `keys`, which is the name of a tap
        self.projections = nn.ModuleList(nn.Conv2d(size, width, 1, bias=False) for size in channels.values())
        self.norm = ChannelNorm(width)
        self.blocks = nn.Sequential(*(DepthwiseBlock(width) for _ in range(blocks)))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """All taps `(B, D, h, w)` -> logits `(B, C, s*h, s*w)`, s = `upsample`."""
        return self.classify(self.encode(features))

    def encode(self, features: Tensor) -> Tensor:
        """All taps `(B, D, h, w)` -> the last feature map `(B, width, s*h, s*w)`."""
        check_dims("features", features, "B D h w")
        check_shape("features", features, (features.shape[0], len(self.mean), *features.shape[2:]), "B D h w")
        weight = torch.cat([projection.weight[:, :, 0, 0] for projection in self.projections], dim=1)
        encoded = F.gelu(self.norm(self.project(features, weight)))  # (B, width, h, w), of the sum over the taps
        if self.upsample > 1:
            encoded = F.interpolate(encoded, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        return self.blocks(encoded)

    def classify(self, encoded: Tensor) -> Tensor:
        """Last feature map `(B, width, H, W)` -> logits `(B, C, H, W)`."""
        return self.classifier(self.dropout(encoded))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every cell by itself; any `(B, D, h, w)`, same shape out."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `(B, D, h, w)` over D."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DepthwiseBlock(nn.Module):
    """`x + 1x1(GELU(norm(depthwise 3x3(x))))` for `(B, width, h, w)`.

    Source: depthwise separable convolution of MobileNet (arXiv:1704.04861).
    Differs: residual, with a norm of each cell in place of batch norms, and no activation after the 1x1 convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = ChannelNorm(width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Same shape."""
        return maps + self.pointwise(F.gelu(self.norm(self.depthwise(maps))))
