"""Wide-ResNet-38: channels, strides, published sizes, and what SEAM and DeepLabv1 read of it."""

import pytest
import torch
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.seam.network import SEAMNetwork
from dhr_lightning.models.backbones import build_encoder, encoder_stages
from dhr_lightning.models.wide_resnet38 import WideResNet38


def test_it_has_the_published_parameters():
    with torch.device("meta"):
        network = WideResNet38()
    assert network.out_channels == [3, 128, 256, 512, 1024, 4096]
    # 105.4 M of SEAM's network are with its four heads: 86,016 + 32,768 + 131,072 + 37,440
    heads = 4096 * 21 + 512 * 64 + 1024 * 128 + 195 * 192
    assert round((sum(one.numel() for one in network.parameters()) + heads) / 1e6, 1) == 105.4
    named = dict(network.named_parameters())
    for name, shape in (("conv1a.weight", (64, 3, 3, 3)), ("b4_5.conv_branch2b1.weight", (512, 512, 3, 3)),
                        ("b5.conv_branch1.weight", (1024, 512, 1, 1)), ("b7.conv_branch2b2.weight", (4096, 2048, 1, 1)),
                        ("bn7.weight", (4096,))):  # fmt: skip
        assert tuple(named[name].shape) == shape
    assert not any(name.startswith("b4_5.conv_branch1") for name in named)
    assert not [name for name in named if "conv" in name and name.endswith("bias")]


@pytest.fixture
def narrow() -> WideResNet38:
    torch.manual_seed(0)
    return WideResNet38(narrow=16).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 321)])
def test_maps_have_strides_up_to_eight_and_are_rectified(narrow: WideResNet38, size: tuple[int, int]):
    features = narrow(torch.randn(1, 3, *size))
    assert [one.shape[1] for one in features] == [3, 8, 16, 32, 64, 256]
    expected = [tuple(-(-side // stride) for side in size) for stride in (1, 2, 4, 8, 8, 8)]
    assert [tuple(one.shape[-2:]) for one in features] == expected
    assert all(float(one.min()) >= 0 for one in features[1:])
    torch.testing.assert_close(WideResNet38(depth=3, narrow=16).eval().out_channels, [3, 8, 16, 32])


@torch.no_grad()
def test_a_shallower_one_gives_the_same_first_maps(narrow: WideResNet38):
    shallow = WideResNet38(depth=3, narrow=16).eval()
    shallow.load_state_dict(narrow.state_dict())
    image = torch.randn(1, 3, 32, 40)
    for one, other in zip(shallow(image), narrow(image), strict=False):
        assert torch.equal(one, other)


@torch.no_grad()
def test_a_residual_block_is_the_plain_formula(narrow: WideResNet38):
    for norm in (module for module in narrow.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.bias.normal_()
    block, x = narrow.b5, torch.randn(1, 32, 9, 9)

    def normalised(norm: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (
            (y - norm.running_mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        ).relu()

    before = normalised(block.bn_branch2a, x)
    first = nn.functional.conv2d(before, block.conv_branch2a.weight, padding=1)  # the first is not dilated
    second = nn.functional.conv2d(
        normalised(block.bn_branch2b1, first), block.conv_branch2b1.weight, padding=2, dilation=2
    )
    beside = nn.functional.conv2d(before, block.conv_branch1.weight)  # of the map after norm and ReLU
    torch.testing.assert_close(block(x), beside + second)


def test_stages_hold_every_parameter_once(narrow: WideResNet38):
    stages = encoder_stages(narrow)
    found = [id(p) for stage in stages for module in stage for p in module.parameters()]
    assert len(stages) == 5
    assert sorted(found) == sorted(id(p) for p in narrow.parameters())


def test_it_has_stride_eight_only():
    with pytest.raises(ConfigError, match="'wide_resnet38' has output stride 8, but got 16"):
        build_encoder("wide_resnet38", output_stride=16)


@pytest.mark.slow
@torch.no_grad()
def test_seam_takes_the_maps_before_the_last():
    network = SEAMNetwork("wide_resnet38", 20, output_stride=8).eval()
    assert (network.low.in_channels, network.middle.in_channels, network.classifier.in_channels) == (512, 1024, 4096)
    raw, refined = network.both(torch.randn(1, 3, 64, 64))
    assert (raw.shape, refined.shape) == ((1, 20, 8, 8), (1, 21, 8, 8))


def test_dilations_and_dropouts_are_the_published_ones(narrow: WideResNet38):
    dilated = {name: (block.conv_branch2a.dilation[0], block.conv_branch2b1.dilation[0]) for name, block in
               narrow.named_children() if hasattr(block, "conv_branch2a")}  # fmt: skip
    assert {name: both for name, both in dilated.items() if both != (1, 1)} == {
        "b5": (1, 2), "b5_1": (2, 2), "b5_2": (2, 2), "b6": (1, 4), "b7": (1, 4)
    }  # fmt: skip
    assert (narrow.b6.dropout.p, narrow.b7.dropout.p) == (0.3, 0.5)
    strides = {
        name: block.conv_branch2a.stride[0]
        for name, block in narrow.named_children()
        if name in ("b2", "b3", "b4", "b5")
    }
    assert strides == {"b2": 2, "b3": 2, "b4": 2, "b5": 1}
