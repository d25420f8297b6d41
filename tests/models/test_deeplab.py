"""DeepLabv3+ against a plain reference written from its description."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.deeplab import ASPP, DeepLabDecoder, LargeFOV
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig


@pytest.fixture(scope="module", params=[8, 16])
def published(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterConfig("resnet50", output_stride=request.param), 21, num_tags=20).eval()


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def facts(convolution: nn.Conv2d) -> tuple[Any, ...]:
    return (
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        convolution.dilation[0],
        convolution.groups,
        convolution.bias is not None,
    )


def test_every_convolution_of_the_decoder_is_the_published_one(published: Segmenter):
    rates = {8: (12, 24, 36), 16: (6, 12, 18)}[published.divisor]
    expected = [(2048, 256, 1, 1, 1, False)]
    expected += [(2048, 256, 3, rate, 1, False) for rate in rates]
    expected += [(2048, 256, 1, 1, 1, False), (1280, 256, 1, 1, 1, False), (256, 48, 1, 1, 1, False)]
    expected += [(304, 256, 3, 1, 1, False), (256, 256, 3, 1, 1, False)]
    assert [facts(convolution) for convolution in convolutions(published.decoder)] == expected
    assert facts(published.head) == (256, 21, 1, 1, 1, False)
    dropouts = [child.p for child in published.decoder.modules() if isinstance(child, nn.Dropout)]
    assert dropouts == [0.5, 0.5, 0.1]
    assert sum(isinstance(child, nn.BatchNorm2d) for child in published.decoder.modules()) == 9


@pytest.mark.parametrize("backbone", ["resnet50", "tu-resnet50", "resnet18"])
@pytest.mark.parametrize(("stride", "third", "fourth"), [(8, 2, 4), (16, 1, 2)])
def test_the_first_block_of_a_dilated_stage_has_dilation_one(backbone: str, stride: int, third: int, fourth: int):
    encoder = Segmenter(SegmenterConfig(backbone, output_stride=stride), 3).encoder
    body = getattr(encoder, "model", encoder)
    for name, dilation in (("layer1", 1), ("layer2", 1), ("layer3", third), ("layer4", fourth)):
        for index, block in enumerate(getattr(body, name)):
            wide = [convolution for convolution in convolutions(block) if convolution.kernel_size == (3, 3)]
            assert wide
            expected = 1 if index == 0 else dilation
            assert {convolution.dilation[0] for convolution in wide} == {expected}, (name, index)
            assert {convolution.padding[0] for convolution in wide} == {expected}, (name, index)


def test_other_encoders_keep_their_dilation():
    for backbone, stride in (("mobilenet_v2", 16), ("small32", 8)):
        encoder = Segmenter(SegmenterConfig(backbone, output_stride=stride), 3).encoder
        assert max(convolution.dilation[0] for convolution in convolutions(encoder)) == 2


@torch.no_grad()
def test_feature_maps_and_logits_have_the_published_strides(published: Segmenter):
    stride = published.divisor
    output = published(torch.zeros(1, 3, 96, 64))
    assert [96 / f.shape[-2] for f in output.features] == [1, 2, 4, 8, stride, stride]
    assert output.cam.shape == (1, 20, 96 // stride, 64 // stride)
    assert output.decoder_logits.shape == (1, 21, 24, 16)
    assert output.logits.shape == (1, 21, 96, 64)


class Block(nn.Module):
    """Convolution, norm, ReLU as three plain functions of given weights."""

    def __init__(self, source: nn.Sequential, *, dilation: int = 1) -> None:
        super().__init__()
        self.convolution, self.norm, self.dilation = source[0].weight, source[1], dilation

    def forward(self, x: Tensor) -> Tensor:
        padding = self.dilation * (self.convolution.shape[-1] // 2)
        x = F.conv2d(x, self.convolution, padding=padding, dilation=self.dilation)
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()


def reference(decoder: DeepLabDecoder, rates: tuple[int, ...], c2: Tensor, c5: Tensor) -> Tensor:
    """The decoder as a list of steps."""
    aspp = decoder.aspp
    height, width = c5.shape[-2:]
    parts = [Block(aspp.branches[0])(c5)]
    parts += [Block(aspp.branches[index + 1], dilation=rate)(c5) for index, rate in enumerate(rates)]
    pooled = Block(aspp.pooled)(F.adaptive_avg_pool2d(c5, 1))
    parts.append(F.interpolate(pooled, (height, width), mode="bilinear", align_corners=False))
    context = Block(aspp.project)(torch.cat(parts, 1))
    factor = c2.shape[-1] // width
    context = F.interpolate(context, scale_factor=factor, mode="bilinear", align_corners=False)
    joined = torch.cat([context, Block(decoder.low)(c2)], 1)
    return Block(decoder.fuse[1])(Block(decoder.fuse[0])(joined))


def shuffle_norms(module: nn.Module) -> None:
    for norm in (child for child in module.modules() if isinstance(child, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.2, 1.5)


@torch.no_grad()
@pytest.mark.parametrize(("stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18))])
def test_the_decoder_equals_a_plain_reference(stride: int, rates: tuple[int, ...]):
    torch.manual_seed(0)
    decoder = DeepLabDecoder(
        [3, 5, 7, 6, 9, 11], num_classes=4, output_stride=stride, channels=8, low_channels=4
    ).eval()
    shuffle_norms(decoder)
    side = 256 // stride
    features = [torch.empty(0), torch.empty(0), torch.randn(2, 7, 64, 64), *[torch.empty(0)] * 2]
    features.append(torch.randn(2, 11, side, side))
    expected = reference(decoder, rates, features[2], features[5])
    torch.testing.assert_close(decoder(features), expected, atol=1e-4, rtol=1e-4)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    decoder = DeepLabDecoder([3, 4, 4, 4, 4, 6], num_classes=4, output_stride=8, channels=8, low_channels=4)
    features = [torch.randn(2, c, 8, 8) for c in (3, 4, 4, 4, 4, 6)]
    assert not torch.equal(decoder(features), decoder(features))
    decoder.eval()
    assert torch.equal(decoder(features), decoder(features))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rates": []}, r"rates .*got \[\]"),
        ({"rates": [6, 0]}, r"rates .*got \[6, 0\]"),
        ({"channels": 0}, "got 0 and 48"),
        ({"low_channels": 0}, "got 256 and 0"),
        ({"dropouts": [0.5]}, r"three probabilities .*got \[0\.5\]"),
        ({"dropouts": [0.5, 0.5, 1.0]}, r"three probabilities"),
        ({"decoder_channels": 16}, r"'decoder_channels' of decoder 'deeplabv3plus'\. Known: channels, dropouts, low"),
        ({"encoder_channels": 16}, "Unknown option 'encoder_channels'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        Segmenter(SegmenterConfig("small32", decoder_options=options, output_stride=8), 3)


def test_a_stride_without_dilation_is_refused():
    with pytest.raises(ConfigError, match="needs output_stride 8 or 16, but got 32"):
        Segmenter(SegmenterConfig("resnet18", output_stride=32), 3)


def test_training_on_a_single_image_is_refused():
    aspp = ASPP(4, 4, rates=(1,), dropout=0.0)
    with pytest.raises(ConfigError, match=r"batch of one image\. Set data\.batch_size"):
        aspp(torch.zeros(1, 4, 8, 8))
    assert aspp.eval()(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8)


@torch.no_grad()
def test_the_first_deeplab_sees_twelve_cells_around_and_is_512_wide():
    decoder = LargeFOV([3, 4, 4, 4, 4, 6], num_classes=4, output_stride=8).eval()
    feature = torch.randn(2, 6, 30, 27)
    wide, project, head = decoder.wide, decoder.project, decoder.head()
    assert (wide[0].weight.shape, wide[0].dilation, wide[0].bias) == ((512, 6, 3, 3), (12, 12), None)
    assert (project[0].weight.shape, project[3].p, head.weight.shape) == ((512, 512, 1, 1), 0.5, (4, 512, 1, 1))
    hidden = F.conv2d(F.pad(feature, (12,) * 4), wide[0].weight, dilation=12).relu()  # norms start as the identity
    expected = F.conv2d(hidden, project[0].weight).relu()
    torch.testing.assert_close(decoder([feature]), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_second_deeplab_is_a_sum_of_dilated_convolutions():
    network = Segmenter(SegmenterConfig("resnet18", output_stride=8, decoder="deeplabv2"), 4).eval()
    branches = network.decoder.branches
    assert [branch.dilation[0] for branch in branches] == [6, 12, 18, 24]
    for branch in branches:
        branch.bias.normal_()
    image = torch.randn(1, 3, 65, 96)
    feature = network.encoder(F.pad(image, (0, 0, 0, 7)))[-1]
    expected = sum(
        F.conv2d(F.pad(feature, (r,) * 4), b.weight, b.bias, dilation=r)
        for b, r in zip(branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(network(image).decoder_logits, expected)
    assert network(image).logits.shape == (1, 4, 65, 96)


@pytest.mark.parametrize(
    ("decoder", "options"), [("deeplabv1", {"rate": 0}), ("deeplabv1", {"dropout": 1.0}), ("deeplabv2", {"rates": []})]
)
def test_options_of_the_older_deeplabs_are_checked(decoder: str, options: dict[str, Any]):
    with pytest.raises(ConfigError, match="Expected"):
        Segmenter(SegmenterConfig("resnet18", output_stride=8, decoder=decoder, decoder_options=options), 4)


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["deeplabv1", "deeplabv2", "deeplabv3plus"])
@pytest.mark.parametrize("size", [(224, 224), (321, 321), (375, 500), (33, 47)])
def test_every_deeplab_takes_the_sizes_of_photos(decoder: str, size: tuple[int, int]):
    network = Segmenter(SegmenterConfig("small32", output_stride=8, decoder=decoder), 5).eval()
    output = network(torch.randn(1, 3, *size))
    stride = 4 if decoder == "deeplabv3plus" else 8
    assert output.decoder_logits.shape == (1, 5, -(-size[0] // stride), -(-size[1] // stride))
    assert output.logits.shape == (1, 5, *size)


@pytest.mark.parametrize("decoder", ["deeplabv1", "deeplabv2", "deeplabv3plus"])
def test_every_deeplab_learns_four_images_by_heart(decoder: str):
    torch.manual_seed(0)
    mask = torch.zeros(4, 64, 64, dtype=torch.long)
    mask[:, 16:48, 8:40], mask[2:, 8:24, 40:60] = 1, 2
    colours = torch.tensor([[-1.0, 0, 0], [1, 0, 1], [0, 1, -1]])
    image = colours[mask].permute(0, 3, 1, 2) + 0.1 * torch.randn(4, 3, 64, 64)
    options = {"deeplabv1": {"channels": 32, "dropout": 0.0}, "deeplabv3plus": {"channels": 32, "dropouts": [0, 0, 0]}}
    network = Segmenter(
        SegmenterConfig("small32", output_stride=8, decoder=decoder, decoder_options=options.get(decoder)), 3
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(image).logits, mask).backward()
        optimizer.step()
    network.eval()
    assert float((network(image).logits.argmax(1) == mask).float().mean()) > 0.95
