from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import CheckpointError, ConfigError
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutput, multi_scale_probability

LIGHT: dict[str, Any] = {"channels": 16, "rates": (2, 4, 6), "low_channels": 8}


class Fixed(nn.Module):
    """Stands for a segmenter whose logits are the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, image: Tensor) -> SegmenterOutput:
        self.seen.append((image.shape[-2], image.shape[-1]))
        return SegmenterOutput(image * 3, None, [])


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterConfig("small32", decoder_options=LIGHT, output_stride=8), 4, num_tags=3).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_have_the_size_of_the_image_and_maps_that_of_the_features(network: Segmenter, image: Tensor):
    output = network(image)
    assert output.logits.shape == (2, 4, 32, 48)
    assert output.logits.dtype == torch.float32
    assert output.cam is not None
    assert output.cam.shape == (2, 3, 4, 6)
    assert [f.shape[-1] for f in output.features] == [48, 24, 12, 6, 6, 6]
    expected = torch.einsum("bdhw,td->bthw", output.features[-1], network.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(output.cam, expected, atol=1e-5, rtol=1e-4)


def test_both_heads_train_the_same_encoder(network: Segmenter, image: Tensor):
    for choose in (lambda output: output.logits, lambda output: output.cam):
        network.zero_grad()
        choose(network(image)).square().sum().backward()
        assert all(p.grad is not None for p in network.encoder.parameters())
    network.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_decoder_at_image_size(network: Segmenter, image: Tensor, training: bool):
    output = network.train(training)(image)
    network.eval()
    assert output.decoder_logits.shape == (2, 4, 8, 12)
    assert output.stride == 4
    expected = F.interpolate(output.decoder_logits, (32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.logits, expected)


@torch.no_grad()
def test_an_image_that_the_stride_does_not_divide_is_padded_with_zeros(network: Segmenter, image: Tensor):
    output, padded = network(image[..., :29, :41]), network(F.pad(image[..., :29, :41], (0, 7, 0, 3)))
    assert output.decoder_logits.shape == (2, 4, 8, 11)
    assert output.logits.shape == (2, 4, 29, 41)
    torch.testing.assert_close(output.decoder_logits, padded.decoder_logits[..., :11])
    torch.testing.assert_close(output.logits, padded.logits[..., :29, :41])


@torch.no_grad()
def test_without_tags_there_is_no_map(image: Tensor):
    network = Segmenter(SegmenterConfig("small32", decoder_options=LIGHT, output_stride=8), 4).eval()
    assert network.classifier is None
    assert network(image).cam is None


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["deeplabv3plus", "fpn", "unet", "linknet"])
def test_every_decoder_gives_logits_of_image_size(decoder: str):
    network = Segmenter(SegmenterConfig("resnet18", output_stride=16, decoder=decoder), 4, num_tags=3).eval()
    output = network(torch.zeros(1, 3, 64, 96))
    assert output.logits.shape == (1, 4, 64, 96)
    assert output.cam.shape[-2:] == ((4, 6) if decoder == "deeplabv3plus" else (2, 3))


@pytest.mark.parametrize("decoder", ["fpn", "unet", "linknet"])
def test_the_small_backbone_needs_deeplab(decoder: str):
    with pytest.raises(ConfigError, match=f"Decoder '{decoder}' needs strides up to 32.*Use deeplabv3plus"):
        Segmenter(SegmenterConfig("small32", decoder=decoder, output_stride=8), 4)


def test_unknown_names_are_refused():
    with pytest.raises(
        ConfigError, match=r"Unknown decoder 'nothing'\. Known: deeplabv3plus, deeplabv1, deeplabv2, deeplabv3, fpn"
    ):
        Segmenter(SegmenterConfig("small32", decoder="nothing"), 4)
    with pytest.raises(ConfigError, match=r"Unknown decoder 'Unet\+\+'\. Did you mean 'unet'\?"):
        Segmenter(SegmenterConfig("resnet18", decoder="Unet++"), 4)
    with pytest.raises(ConfigError, match="Unknown backbone 'nothing'"):
        Segmenter(SegmenterConfig("nothing"), 4)


def test_the_encoder_starts_from_the_given_weights(network: Segmenter, tmp_path: Path):
    torch.save(network.encoder.state_dict(), tmp_path / "encoder.pth")
    options: dict[str, Any] = {"decoder_options": LIGHT, "output_stride": 8}
    other = Segmenter(SegmenterConfig("small32", pretrained=str(tmp_path / "encoder.pth"), **options), 4)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        Segmenter(SegmenterConfig("small32", pretrained=str(tmp_path / "gone.pth"), **options), 4)


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_sum_to_one(network: Segmenter, image: Tensor, scales: tuple[float, ...], flip: bool):
    probability = multi_scale_probability(network, image, scales=scales, flip=flip)
    assert probability.shape == (2, 4, 32, 48)
    assert probability.min() >= 0
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 32, 48))


@torch.no_grad()
def test_one_scale_without_mirror_is_the_softmax(network: Segmenter, image: Tensor):
    probability = multi_scale_probability(network, image, scales=(1.0,), flip=False, divisor=16)
    torch.testing.assert_close(probability, network(image).logits.softmax(1))


@torch.no_grad()
def test_the_mirrored_image_gives_the_mirrored_probability(network: Segmenter, image: Tensor):
    plain = multi_scale_probability(network, image, scales=(1.0, 1.5), flip=True)
    mirrored = multi_scale_probability(network, image.flip(-1), scales=(1.0, 1.5), flip=True)
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-5, rtol=1e-4)


def test_views_are_averaged_in_place_and_sides_are_multiples_of_the_divisor():
    network, image = Fixed(), torch.zeros(1, 3, 48, 80)
    image[:, 1, :, :20] = 1
    probability = multi_scale_probability(network, image, scales=(1.0, 0.6, 0.1), flip=True, divisor=16)
    assert network.seen == [(48, 80)] * 2 + [(32, 48)] * 2 + [(16, 16)] * 2
    labels = probability.argmax(1)
    assert (labels[:, :, :12] == 1).all()
    assert (labels[:, :, 40:] == 0).all()
    single = multi_scale_probability(Fixed(), image, scales=(1.0,), flip=True, divisor=16)
    torch.testing.assert_close(single, (image * 3).softmax(1))


class Ramp(nn.Module):
    """Stands for a segmenter whose logits depend on the column alone, not on the image."""

    def forward(self, image: Tensor) -> SegmenterOutput:
        column = torch.linspace(-2, 3, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])
        return SegmenterOutput(torch.cat([column, -column, 0.3 * column], 1), None, [])


@pytest.mark.parametrize("flip", [False, True])
def test_mirrored_views_are_mirrored_back(flip: bool):
    image = torch.zeros(1, 3, 32, 64)
    once = Ramp()(image).logits.softmax(1)
    expected = (once + once.flip(-1)) / 2 if flip else once
    torch.testing.assert_close(multi_scale_probability(Ramp(), image, scales=(1.0,), flip=flip), expected)
