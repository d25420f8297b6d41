"""The small encoder against plain functions written from its description."""

import pytest
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import Small32Encoder, build_encoder
from dhr_lightning.models.deeplab import DeepLabDecoder

# Channels in and out, number of 3x3 convolutions, stride of the first, dilation of all: the four stages of blocks.
STAGES = [(32, 64, 2, 2, 1), (64, 96, 2, 2, 1), (96, 128, 1, 1, 1), (128, 128, 1, 1, 2)]


def of_kind(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, kind)]


def convolve(x: Tensor, weight: Tensor, norm: nn.Module, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolution that keeps the size but for the stride, then batch norm with stored statistics."""
    x = F.conv2d(x, weight, stride=stride, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
    shift, scale = norm.running_mean[:, None, None], (norm.running_var[:, None, None] + norm.eps).sqrt()
    return (x - shift) / scale * norm.weight[:, None, None] + norm.bias[:, None, None]


def reference(encoder: Small32Encoder, image: Tensor) -> list[Tensor]:
    """All feature maps of the encoder, with its weights taken in the order in which they are listed."""
    layers = list(zip(of_kind(encoder, nn.Conv2d), of_kind(encoder, nn.BatchNorm2d), strict=True))
    convolution, norm = layers.pop(0)
    features = [image, convolve(image, convolution.weight, norm, stride=2).relu()]
    for inputs, outputs, depth, stride, dilation in STAGES:
        x = features[-1]
        for index in range(depth):
            convolution, norm = layers.pop(0)
            x = convolve(x.relu(), convolution.weight, norm, stride=stride if index == 0 else 1, dilation=dilation)
        skipped = features[-1]
        if stride > 1 or inputs != outputs:
            convolution, norm = layers.pop(0)
            skipped = convolve(skipped, convolution.weight, norm, stride=stride)
        features.append((x + skipped).relu())
    assert not layers
    return features


@torch.no_grad()
def test_every_feature_map_equals_plain_functions_of_the_weights():
    torch.manual_seed(0)
    encoder = build_encoder("small32", output_stride=8).eval()
    for norm in of_kind(encoder, nn.BatchNorm2d):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.2, 1.5)
    image = torch.randn(2, 3, 32, 48)
    kept = image.clone()
    for ours, plain in zip(encoder(image), reference(encoder, kept), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert torch.equal(image, kept)


def test_shapes_of_all_weights_are_those_of_the_description():
    encoder = build_encoder("small32", output_stride=8)
    expected = [(32, 3, 3, 3)]
    for inputs, outputs, depth, stride, _ in STAGES:
        expected += [(outputs, inputs, 3, 3)] + [(outputs, outputs, 3, 3)] * (depth - 1)
        expected += [(outputs, inputs, 1, 1)] if stride > 1 or inputs != outputs else []
    convolutions = of_kind(encoder, nn.Conv2d)
    assert [tuple(convolution.weight.shape) for convolution in convolutions] == expected
    assert all(convolution.bias is None for convolution in convolutions)


@torch.no_grad()
def test_the_last_two_stages_see_a_step_and_two_steps_far():
    """One pixel of a stage's input reaches those cells of its output that the dilation reaches, and no others."""
    encoder = build_encoder("small32", output_stride=8).eval()
    for stage, inputs, reach in ((encoder.stages[3], 96, 1), (encoder.stages[4], 128, 2)):
        x = torch.zeros(1, inputs, 9, 9)
        before = stage(x)
        x[0, :, 4, 4] = torch.rand(inputs)
        rows = (stage(x) - before).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
        assert rows == [4 - reach, 4, 4 + reach]


def test_the_library_can_ask_for_fewer_stages():
    encoder = get_encoder("small32", depth=3, weights=None, output_stride=8).eval()
    features = encoder(torch.zeros(1, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in features] == [(3, 32, 32), (32, 16, 16), (64, 8, 8), (96, 4, 4)]
    assert list(encoder.out_channels) == [3, 32, 64, 96]


def test_its_stride_is_told_and_no_other_one_can_be_made():
    encoder = Small32Encoder()
    assert encoder.output_stride == 8
    encoder.make_dilated(8)
    for stride in (4, 16):
        with pytest.raises(ConfigError, match=f"stride 8, but got {stride}"):
            encoder.make_dilated(stride)


@torch.no_grad()
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_activations_need_no_memory_of_their_own(part: str):
    """They overwrite the map that they are given, which nothing reads afterwards."""
    widths = [3, 4, 4, 4, 4, 6]
    network = (
        Small32Encoder() if part == "encoder" else DeepLabDecoder(widths, num_classes=4, output_stride=8, channels=8)
    )
    places: list[bool] = []
    for activation in of_kind(network, nn.ReLU):
        activation.register_forward_hook(lambda _, given, out: places.append(given[0].data_ptr() == out.data_ptr()))
    maps = [torch.randn(2, channels, 8, 8) for channels in widths]
    network(maps[0] if part == "encoder" else maps)
    assert len(places) == len(of_kind(network, nn.ReLU))
    assert all(places)
