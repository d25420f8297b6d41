"""Options of networks reach the part that they are about, up to the ends of their ranges."""

from typing import Any

import pytest
import torch
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import is_encoder
from dhr_lightning.models.classifier import CAMClassifier
from dhr_lightning.models.deeplab import ASPP, DeepLabDecoder, undilate_first_blocks
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig

CHANNELS = [3, 4, 4, 4, 5, 6]


def dilations(network: nn.Module) -> set[int]:
    return {module.dilation[0] for module in network.modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(
    ("options", "grid", "dilated"),
    [
        ({}, (2, 3), {1, 2}),
        ({"output_stride": 8}, (4, 6), {1, 2, 4}),
        ({"dilation": False}, (2, 3), {1}),
        ({"output_stride": 8, "dilation": False}, (4, 6), {1}),
    ],
)
def test_a_classifier_has_stride_16_and_dilation_unless_told_otherwise(
    options: dict[str, Any], grid: tuple[int, int], dilated: set[int]
):
    network = CAMClassifier("resnet18", 3, **options).eval()
    assert network(torch.zeros(1, 3, 32, 48)).shape == (1, 3, *grid)
    assert dilations(network) == dilated


def test_a_segmenter_has_stride_16_and_no_cam_head_unless_told_otherwise():
    network = Segmenter(SegmenterConfig("resnet18", output_stride=16), 3)
    assert network.divisor == 16
    assert network.classifier is None


@pytest.mark.parametrize(
    ("name", "known"),
    [("tu-resnet18", True), ("tu-resnet18.a1_in1k", True), ("resnet18", True), ("tu-small32", False), ("tu-", False)],
)
def test_names_of_timm_are_known_with_and_without_their_weights(name: str, known: bool):
    assert is_encoder(name) is known
    assert not is_encoder("vit_tiny_patch16_224"), "a network of timm without feature maps has no tu- name"


def test_the_smallest_options_of_deeplab_are_accepted():
    decoder = DeepLabDecoder(
        CHANNELS, num_classes=4, output_stride=16, channels=1, low_channels=1, rates=[1], dropouts=(0.0, 0.0, 0.0)
    )
    features = [torch.randn(2, channels, 4, 4) for channels in CHANNELS]
    assert decoder(features).shape == (2, 1, 4, 4)
    assert not [module for module in decoder.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("dropouts", [(0.5, 0.5, 1.0), (0.5, 0.5, 1.5), (-0.1, 0.5, 0.1), (0.5, 0.5, 0.1, 0.1), ()])
def test_three_probabilities_below_one_are_dropouts_and_nothing_else(dropouts: tuple[float, ...]):
    with pytest.raises(ConfigError, match=r"dropouts to be three probabilities in \[0, 1\)"):
        DeepLabDecoder(CHANNELS, num_classes=4, output_stride=16, dropouts=dropouts)


def test_every_dropout_of_deeplab_has_its_place():
    decoder = DeepLabDecoder(CHANNELS, num_classes=4, output_stride=16, channels=8, dropouts=(0.2, 0.3, 0.4))
    places = {name: part.p for name, part in decoder.named_modules() if isinstance(part, nn.Dropout)}
    assert [(name.partition(".")[0], p) for name, p in places.items()] == [("aspp", 0.2), ("fuse", 0.3), ("fuse", 0.4)]


def test_a_stage_that_an_encoder_lacks_does_not_keep_the_other_from_losing_its_dilation():
    block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=4, dilation=4), nn.Conv2d(2, 2, (1, 3)))
    encoder = nn.Module()
    encoder.layer4 = nn.Sequential(block, nn.Conv2d(2, 2, 3, padding=4, dilation=4))
    image = torch.zeros(1, 2, 12, 12)
    before = encoder.layer4(image).shape
    undilate_first_blocks(encoder)
    assert [layer.dilation for layer in block] == [(1, 1)] * 3
    assert [layer.padding for layer in block] == [(0, 0), (1, 1), (0, 1)]
    assert encoder.layer4[1].dilation == (4, 4)
    assert encoder.layer4(image).shape == (before[0], before[1], before[2], before[3] + 2)


def test_deeplab_trains_on_two_images_and_predicts_one():
    aspp = ASPP(4, 4, rates=(1,), dropout=0.0)
    assert aspp(torch.randn(2, 4, 8, 8)).shape == (2, 4, 8, 8)
    assert aspp.eval()(torch.randn(3, 4, 8, 8)).shape == (3, 4, 8, 8)


@pytest.mark.parametrize(("decoder", "stride", "expected"), [("deeplabv3", 8, 8), ("pspnet", 8, 8), ("fpn", 8, 32)])
def test_a_decoder_of_the_library_gets_the_stride_that_it_can_use(decoder: str, stride: int, expected: int):
    network = Segmenter(SegmenterConfig("resnet18", decoder=decoder, output_stride=stride), 3).eval()
    assert network.divisor == expected
    features = network(torch.zeros(1, 3, 64, 64)).features
    assert 64 // features[-1].shape[-1] == expected


def test_a_decoder_far_from_every_name_is_refused_without_a_guess():
    with pytest.raises(ConfigError, match=r"Unknown decoder 'qqqqqq'\. Known: deeplabv3plus"):
        Segmenter(SegmenterConfig("resnet18", decoder="qqqqqq"), 3)
