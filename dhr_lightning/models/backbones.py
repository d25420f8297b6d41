"""Encoders by name: ours, and every encoder of segmentation-models-pytorch and timm (`tu-...`)."""

from pathlib import Path
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import encoders, get_encoder
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.models.weights import load_weights, source_of
from dhr_lightning.models.wide_resnet38 import WIDE_RESNET38, WideResNet38

STRIDE_8 = ("small32", WIDE_RESNET38)  # encoders whose coarsest map has stride 8, whatever is asked


class _Block(nn.Module):
    """Residual block of 3x3 convolutions with batch norm; `stride` on the first one, `dilation` on all."""

    def __init__(self, inputs: int, outputs: int, *, depth: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            step = stride if index == 0 else 1
            layers += [
                nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, step, dilation, dilation, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.body = nn.Sequential(*layers[:-1])
        projected = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.skip: nn.Module = nn.Identity() if stride == 1 and inputs == outputs else projected
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.skip(x))


class Small32Encoder(nn.Module, EncoderMixin):
    """Residual network of 0.5 M parameters and output stride 8, for small images on a CPU.

    Feature maps have strides 1, 2, 4, 8, 8, 8; the last stage is dilated. Random initialisation only.
    """

    def __init__(self, depth: int = 5, output_stride: int = 8, **_: Any) -> None:
        super().__init__()
        self._depth, self._in_channels, self._output_stride = depth, 3, 8
        self._out_channels = [3, 32, 64, 96, 128, 128]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
                _Block(32, 64, depth=2, stride=2),
                _Block(64, 96, depth=2, stride=2),
                _Block(96, 128, depth=1),
                _Block(128, 128, depth=1, dilation=2),
            ]
        )

    def make_dilated(self, output_stride: int) -> None:
        """Nothing to do: the network has output stride 8 by construction."""
        if output_stride != 8:
            raise ConfigError(f"Encoder 'small32' has output stride 8, but got {output_stride}. Set output_stride: 8.")

    def own_stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and of each stage."""
        return [[stage] for stage in self.stages]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps at strides 1, 2, 4, 8, 8, 8."""
        features = [x]
        for stage in self.stages[: self._depth]:
            features.append(stage(features[-1]))
        return features


encoders["small32"] = {"encoder": Small32Encoder, "pretrained_settings": {}, "params": {}}


def is_encoder(name: str) -> bool:
    """Tell whether `build_encoder` knows a name."""
    return timm.is_model(name[3:].split(".")[0]) if name.startswith("tu-") else name in encoders


def build_encoder(
    name: str, *, pretrained: bool | str = False, output_stride: int = 16, dilation: bool = True, depth: int = 5
) -> nn.Module:
    """Build an encoder that returns a list of its input and `depth` feature maps, finest first.

    Args:
        name: `small32`, `wide_resnet38`, a name of segmentation-models-pytorch (`resnet50`), or `tu-` and a timm name.
        pretrained: `False` for random weights, `True` for ImageNet weights by name (downloads on first use), or a path.
        output_stride: 8 or 16; stages beyond it keep the resolution.
        dilation: the stages beyond it are dilated, as libraries do; `false` leaves their convolutions as they are, only
            without stride (the ResNet of IRNet and SFC).
        depth: number of feature maps, 3 to 5; the stages behind them do not run.

    Raises:
        ConfigError: if the name is unknown, has no ImageNet weights, or cannot have this output stride or dilation.
        DependencyError: if a download was asked for and failed.
        CheckpointError: if the file of weights does not fit.
    """
    if not is_encoder(name):
        raise ConfigError(f"Unknown backbone {name!r}. Known: small32, tu-<timm name>, {', '.join(sorted(encoders))}.")
    if pretrained is True and name == "small32":
        raise ConfigError("Backbone 'small32' has no pretrained weights. Set pretrained: false.")
    weights: Any = (True if name.startswith("tu-") else "imagenet") if pretrained is True else None
    any_size = {"strict_img_size": False} if name.startswith("tu-swin") else {}
    try:
        encoder: nn.Module = get_encoder(name, weights=weights, output_stride=output_stride, depth=depth, **any_size)
    except OSError as error:
        raise DependencyError(
            f"ImageNet weights of {name!r} could not be downloaded ({type(error).__name__}). Download "
            f"{source_of(name)} elsewhere and set pretrained: PATH, or set pretrained: false."
        ) from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"Backbone {name!r} cannot have pretrained: {pretrained} with output_stride: {output_stride} ({error})."
        ) from error
    if not dilation:
        _remove_dilation(encoder, name)
    if isinstance(pretrained, str):
        load_weights(encoder, Path(pretrained), what=f"backbone {name!r}", source=source_of(name))
    return encoder


def _remove_dilation(encoder: nn.Module, name: str) -> None:
    """Give every dilated convolution dilation 1 and the padding that keeps its output size; weights stay.

    Raises:
        ConfigError: if no convolution is dilated, because the backbone reaches its output stride in another way, or
            one has an even kernel, whose output would shrink.

    Source: layer4 of the ResNet-50 of IRNet (arXiv:1904.05044), stride 1 and dilation 1.
    """
    dilated = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and max(m.dilation) > 1]
    if not dilated or any(side % 2 == 0 for layer in dilated for side in layer.kernel_size):
        has = "a dilated convolution with an even kernel" if dilated else "no dilated convolution"
        raise ConfigError(f"Backbone {name!r} has {has}, so dilation: false cannot be done. Set dilation: true.")
    for layer in dilated:
        if not isinstance(layer.padding, str):  # "same" follows by itself
            layer.padding = (layer.padding[0] // layer.dilation[0], layer.padding[1] // layer.dilation[1])
        layer.dilation = (1, 1)


def encoder_stages(encoder: nn.Module) -> list[list[nn.Module]]:
    """Modules of the stem and of each stage, in the order in which an image passes them.

    Empty for an encoder that does not list them: ResNets and their relatives do, `small32` and `wide_resnet38`.
    """
    if isinstance(encoder, Small32Encoder | WideResNet38):
        return encoder.own_stages()
    children = dict(getattr(encoder, "model", encoder).named_children())
    names = [f"layer{index}" for index in range(1, 5)]
    if not set(names) <= set(children):
        return []
    stem = [module for name, module in children.items() if name not in names]
    return [stem, *([children[name]] for name in names)]


class FrozenEncoder(nn.Module):
    """One feature map of an encoder, without gradient.

    Args:
        name: see `build_encoder`.
        pretrained: see `build_encoder`.
        level: which feature map, counted from the coarsest, >= 1; 2 is the one before the last stage. Middle maps tell
            regions apart without training, the last one only classes.

    Raises:
        ConfigError: if the encoder has no such map.
    """

    def __init__(self, name: str, *, pretrained: bool | str = False, level: int = 2) -> None:
        super().__init__()
        self.encoder = build_encoder(name, pretrained=pretrained)
        channels = self.encoder.out_channels
        if not 1 <= level < len(channels):
            raise ConfigError(f"Expected a level of {name!r} in [1, {len(channels) - 1}], but got {level}.")
        self.level, self.out_channels = level, int(channels[-level])
        self.cell = 16  # pixels that sides must be a multiple of
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` normalised, sides divisible by `cell` -> `(B, F, h, w)`."""
        features: Tensor = self.encoder(image)[-self.level]
        return features
