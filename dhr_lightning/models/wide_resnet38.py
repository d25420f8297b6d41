"""Wide-ResNet-38, the backbone of PSA and SEAM and of MARS's DeepLabv1, which no library has."""

from typing import Any

from segmentation_models_pytorch.encoders import encoders
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError

WIDE_RESNET38 = "wide_resnet38"


class _Residual(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU; where the shape changes, a 1x1 convolution beside them."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, stride: int = 1, first_dilation: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, first_dilation, first_dilation, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, 1, dilation, dilation, bias=False)
        self.same = inputs == outputs and stride == 1
        if not self.same:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def before(self, x: Tensor) -> Tensor:
        """What the convolutions see: the map after norm and ReLU."""
        return F.relu(self.bn_branch2a(x))

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        beside = x if self.same else self.conv_branch1(before)
        return beside + self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(before))))


class _Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions, each after norm and ReLU, with dropout of channels before the last two."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, outputs // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(outputs // 4)
        self.conv_branch2b1 = nn.Conv2d(outputs // 4, outputs // 2, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(outputs // 2)
        self.conv_branch2b2 = nn.Conv2d(outputs // 2, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def before(self, x: Tensor) -> Tensor:
        """What the convolutions see: the map after norm and ReLU."""
        return F.relu(self.bn_branch2a(x))

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        inner = self.dropout(F.relu(self.bn_branch2b1(self.conv_branch2a(before))))
        inner = self.dropout(F.relu(self.bn_branch2b2(self.conv_branch2b1(inner))))
        return self.conv_branch1(before) + self.conv_branch2b2(inner)


class WideResNet38(nn.Module, EncoderMixin):
    """Pre-activation residual network of output stride 8 and 104 M parameters, as the codes of PSA and SEAM have it.

    Feature maps, each after norm and ReLU, have strides 1, 2, 4, 8, 8, 8 and 3, 128, 256, 512, 1024, 4096 channels; the
    last three are what those codes call conv4, conv5 and conv6. Parameters are named as there, so that their file of
    ImageNet weights loads (`pretrained: FILE`).

    Args:
        depth: number of feature maps, 3 to 5; the stages behind them do not run.
        output_stride: 8 only.
        narrow: divides the channels, for tests.

    Source: arXiv:1611.10080 (model A1), with the dilations of PSA (arXiv:1803.10464).
    """

    def __init__(self, depth: int = 5, output_stride: int = 8, narrow: int = 1, **_: Any) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024, c2048, c4096 = (2**power // narrow for power in range(6, 13))
        self._depth, self._in_channels, self._output_stride = depth, 3, 8
        self._out_channels = [3, c128, c256, c512, c1024, c4096][: depth + 1]
        self.conv1a = nn.Conv2d(3, c64, 3, 1, 1, bias=False)
        for stage, inputs, outputs, blocks in ((2, c64, c128, 3), (3, c128, c256, 3), (4, c256, c512, 6)):
            self._add(f"b{stage}", _Residual(inputs, outputs, outputs, stride=2))
            for index in range(1, blocks):
                self._add(f"b{stage}_{index}", _Residual(outputs, outputs, outputs))
        self._add("b5", _Residual(c512, c512, c1024, first_dilation=1, dilation=2))
        for index in (1, 2):
            self._add(f"b5_{index}", _Residual(c1024, c512, c1024, first_dilation=2, dilation=2))
        self._add("b6", _Bottleneck(c1024, c2048, dilation=4, dropout=0.3))
        self._add("b7", _Bottleneck(c2048, c4096, dilation=4, dropout=0.5))
        self.bn7 = nn.BatchNorm2d(c4096)

    def _add(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)

    def make_dilated(self, output_stride: int) -> None:
        """Nothing to do: the network has output stride 8 by construction."""
        if output_stride != 8:
            raise ConfigError(
                f"Encoder {WIDE_RESNET38!r} has output stride 8, but got {output_stride}. Set output_stride: 8."
            )

    def own_stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and of each stage: `conv1a` with `b2`, then `b3`, `b4`, `b5`, and the rest."""
        blocks = dict(self.named_children())
        names = [[name for name in blocks if name.split("_")[0] == stage] for stage in ("b2", "b3", "b4", "b5")]
        stages = [[blocks[name] for name in stage] for stage in names]
        return [[self.conv1a, *stages[0]], *stages[1:], [blocks[name] for name in ("b6", "b7", "bn7")]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` normalised -> the image and `depth` feature maps."""
        features = [x]
        x = self.conv1a(x)
        blocks = {name: block for name, block in self.named_children() if name.startswith("b") and name != "bn7"}
        for name, block in blocks.items():
            if name in ("b3", "b4", "b5", "b6"):  # the map before a stage is seen by it after norm and ReLU
                features.append(block.before(x))
                if len(features) > self._depth:
                    return features
            x = block(x)
        return [*features, F.relu(self.bn7(x))]


encoders[WIDE_RESNET38] = {"encoder": WideResNet38, "pretrained_settings": {}, "params": {}}
