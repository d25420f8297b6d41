"""DeepLabv1, v2 and v3+ in the form that the methods publish: their decoders, and the dilation of their encoders."""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError

RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


def _convolution(inputs: int, outputs: int, kernel: int, *, dilation: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch norm, ReLU, and dropout if it is not 0."""
    padding = dilation * (kernel // 2)
    layers = [
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, one 3x3 convolution for each rate, and the image mean.

    Args:
        inputs: channels of the feature map.
        channels: channels of every branch and of the result.
        rates: dilation of each 3x3 convolution.
        dropout: probability after the projection.
    """

    def __init__(self, inputs: int, channels: int, *, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        branches = [_convolution(inputs, channels, 1)]
        branches += [_convolution(inputs, channels, 3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.pooled = _convolution(inputs, channels, 1)
        self.project = _convolution((len(branches) + 1) * channels, channels, 1, dropout=dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """`(B, F, h, w)` -> `(B, channels, h, w)`.

        Raises:
            ConfigError: if a single image is to be trained on: the norm of the image mean needs several.
        """
        if self.training and len(feature) == 1:
            raise ConfigError("DeepLabv3+ cannot train on a batch of one image. Set data.batch_size to 2 or more.")
        pooled = self.pooled(feature.mean((2, 3), keepdim=True)).expand(-1, -1, *feature.shape[-2:])
        return self.project(torch.cat([*(branch(feature) for branch in self.branches), pooled], 1))


class DeepLabDecoder(nn.Module):
    """Decoder of DeepLabv3+: ASPP on the last feature map, joined with the feature map of stride 4.

    Args:
        encoder_channels: channels of the six feature maps of the encoder, finest first.
        num_classes: segmentation classes C, for `head`.
        output_stride: of the encoder, 8 or 16.
        channels: of ASPP and of the result.
        rates: dilations of ASPP; default 12, 24, 36 at stride 8 and 6, 12, 18 at stride 16.
        low_channels: what the map of stride 4 is projected to.
        dropouts: probabilities after ASPP, the first and the second 3x3 convolution.

    Raises:
        ConfigError: if an option is out of range.

    Source: DeepLabv3+ (arXiv:1802.02611) as in the published code of DHR (arXiv:2404.00380): no separable convolutions.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        num_classes: int,
        output_stride: int,
        channels: int = 256,
        rates: Sequence[int] | None = None,
        low_channels: int = 48,
        dropouts: Sequence[float] = (0.5, 0.5, 0.1),
    ) -> None:
        super().__init__()
        if output_stride not in RATES:
            raise ConfigError(f"Decoder 'deeplabv3plus' needs output_stride 8 or 16, but got {output_stride}.")
        chosen = tuple(RATES[output_stride] if rates is None else rates)
        _check_options(channels, low_channels, chosen, dropouts)
        self.out_channels, self.num_classes = channels, num_classes
        self.aspp = ASPP(encoder_channels[-1], channels, rates=chosen, dropout=dropouts[0])
        self.low = _convolution(encoder_channels[2], low_channels, 1)
        self.fuse = nn.Sequential(
            _convolution(channels + low_channels, channels, 3, dropout=dropouts[1]),
            _convolution(channels, channels, 3, dropout=dropouts[2]),
        )
        initialize_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder -> `(B, channels, H/4, W/4)`."""
        low = self.low(features[2])
        high = F.interpolate(self.aspp(features[-1]), low.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([high, low], 1))

    def head(self) -> nn.Module:
        """A new classification layer, without bias."""
        return _classes(self.out_channels, self.num_classes)


class LargeFOV(nn.Module):
    """Decoder of DeepLabv1: one dilated 3x3 convolution on the last feature map, and a 1x1 convolution.

    Args:
        encoder_channels: channels of the feature maps of the encoder, finest first.
        num_classes: segmentation classes C, for `head`.
        output_stride: of the encoder; any.
        channels: of both convolutions.
        rate: dilation of the first one, >= 1.
        dropout: probability before the classification.

    Raises:
        ConfigError: if an option is out of range.

    Source: DeepLab-LargeFOV (arXiv:1412.7062) as in the published code of DHR (arXiv:2404.00380), with batch norm.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        num_classes: int,
        output_stride: int,
        channels: int = 512,
        rate: int = 12,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_options(channels, channels, (rate,), (dropout,) * 3)
        self.out_channels, self.num_classes = channels, num_classes
        self.wide = _convolution(encoder_channels[-1], channels, 3, dilation=rate)
        self.project = _convolution(channels, channels, 1, dropout=dropout)
        initialize_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder -> `(B, channels, h, w)` at the size of the last one."""
        return self.project(self.wide(features[-1]))

    def head(self) -> nn.Module:
        """A new classification layer, without bias."""
        return _classes(self.out_channels, self.num_classes)


class AtrousSum(nn.Module):
    """Decoder of DeepLabv2: the sum of dilated 3x3 convolutions of the last feature map, straight to logits.

    Args:
        encoder_channels: channels of the feature maps of the encoder, finest first.
        num_classes: segmentation classes C.
        output_stride: of the encoder; any.
        rates: dilation of each convolution, >= 1.

    Raises:
        ConfigError: if an option is out of range.

    Source: DeepLab-ASPP (arXiv:1606.00915), with bias, as RS+EPM, MARS and DHR use it.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        num_classes: int,
        output_stride: int,
        rates: Sequence[int] = (6, 12, 18, 24),
    ) -> None:
        super().__init__()
        _check_options(1, 1, rates, (0.0,) * 3)
        inputs = encoder_channels[-1]
        self.branches = nn.ModuleList(nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate) for rate in rates)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder -> logits `(B, C, h, w)` at the size of the last one."""
        logits: Tensor = sum(branch(features[-1]) for branch in self.branches)
        return logits

    def head(self) -> nn.Module:
        """Nothing: the sum is the logits."""
        return nn.Identity()


def _classes(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _check_options(channels: int, low_channels: int, rates: Sequence[int], dropouts: Sequence[float]) -> None:
    if channels < 1 or low_channels < 1:
        raise ConfigError(f"Expected channels and low_channels >= 1, but got {channels} and {low_channels}.")
    if not rates or min(rates) < 1:
        raise ConfigError(f"Expected rates to be one or more integers >= 1, but got {list(rates)}.")
    if len(dropouts) != 3 or not all(0 <= probability < 1 for probability in dropouts):
        raise ConfigError(f"Expected dropouts to be three probabilities in [0, 1), but got {list(dropouts)}.")


def undilate_first_blocks(encoder: nn.Module) -> None:
    """Give the first block of the last two stages of a ResNet dilation 1; the others keep that of their stage.

    At output stride 8 the dilations are then 1, 2, 2, ... in layer3 and 1, 4, 4 in layer4. Encoders without stages
    `layer3` and `layer4` stay as they are.

    Source: published code of DHR (arXiv:2404.00380). segmentation-models-pytorch dilates the first block as well.
    """
    body = getattr(encoder, "model", encoder)  # encoders of timm are one level down
    for name in ("layer3", "layer4"):
        stage = getattr(body, name, None)
        if not isinstance(stage, nn.Sequential):
            continue
        convolutions = [module for module in stage[0].modules() if isinstance(module, nn.Conv2d)]
        for convolution in (module for module in convolutions if module.kernel_size != (1, 1)):
            convolution.dilation = (1, 1)
            convolution.padding = tuple(side // 2 for side in convolution.kernel_size)
