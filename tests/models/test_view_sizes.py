"""Sizes at which images are looked at, down to single pixels and cells."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.models.backbones import FrozenEncoder, build_encoder
from dhr_lightning.models.classifier import masked_mean, multi_scale_cam, published_cam
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig, SegmenterOutput, multi_scale_probability


class Recorder(nn.Module):
    """Notes the sizes of the images that it gets."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer, self.seen = answer, list[tuple[int, ...]]()

    def forward(self, image: Tensor) -> object:
        self.seen.append(tuple(image.shape[-2:]))
        return self.answer(image)


def test_views_of_a_classifier_are_rounded_and_have_a_pixel_at_least():
    network = Recorder(lambda image: image)
    cam = multi_scale_cam(network, torch.ones(1, 3, 6, 11), scales=(0.05, 0.45, 1.0, 2.0), flip=False, size=(2, 3))
    assert network.seen == [(1, 1), (3, 5), (6, 11), (12, 22)]
    torch.testing.assert_close(cam, torch.full((1, 3, 2, 3), 4.0))


def test_views_of_a_segmenter_are_multiples_of_32_unless_told_otherwise():
    network = Recorder(lambda image: SegmenterOutput(image, None, []))
    multi_scale_probability(network, torch.zeros(1, 3, 60, 90), scales=(0.1, 0.75, 1.0, 2.0), flip=False)
    assert network.seen == [(32, 32), (32, 64), (64, 96), (128, 192)]


@pytest.mark.parametrize(
    ("stride", "grid", "expected"),
    [(8, (1, 1), (1, 1)), (8, (5, 9), (2, 4)), (4, (8, 20), (2, 5)), (16, (5, 9), (5, 9)), (32, (5, 9), (5, 9))],
)
def test_published_maps_have_stride_16_or_that_of_a_coarser_network(
    stride: int, grid: tuple[int, int], expected: tuple[int, int]
):
    assert published_cam(nn.Identity(), torch.rand(1, 2, *grid), stride=stride).shape == (1, 2, *expected)


def test_one_valid_pixel_of_a_large_crop_decides_alone():
    maps = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(1, 512, 512, dtype=torch.bool)
    valid[0, 300, 200] = True
    torch.testing.assert_close(masked_mean(maps, valid), maps[:, :, 2, 1])


@torch.no_grad()
@pytest.mark.parametrize("level", range(1, 6))
def test_a_frozen_encoder_gives_the_map_that_was_asked(level: int):
    torch.manual_seed(0)
    encoder = FrozenEncoder("resnet18", level=level)
    plain = build_encoder("resnet18", output_stride=16).eval()
    plain.load_state_dict(encoder.encoder.state_dict())
    image = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(encoder(image), plain(image)[-level])
    assert encoder.out_channels == plain.out_channels[-level]


def test_a_frozen_encoder_gives_the_map_before_the_last_stage_and_learns_nothing():
    encoder = FrozenEncoder("resnet18")
    assert (encoder.level, encoder.out_channels) == (2, 256)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride"), [(6, 2), (4, 4), (5, 1), (3, 1)])
def test_cells_of_patches_of_any_size_are_twice_their_stride(size: int, stride: int):
    """With one flat colour all patches are alike, so all cells are, whatever the patch."""
    encoder = PatchEncoder(4, size=size, stride=stride)
    encoder.centroids.copy_(torch.randn(4, 3 * size**2, generator=torch.Generator().manual_seed(0)))
    pixels = torch.full((1, 3, 8 * stride, 12 * stride), 90, dtype=torch.uint8)
    features = encoder(pixels)
    assert encoder.cell == 2 * stride
    assert features.shape == (1, 4, 4, 6)
    torch.testing.assert_close(features, features[:, :, :1, :1].expand_as(features))


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16])
def test_an_image_that_needs_no_padding_gets_none(stride: int):
    network = Segmenter(SegmenterConfig("resnet18", decoder_options={"channels": 8}, output_stride=stride), 3).eval()
    image = torch.randn(1, 3, 2 * stride, 3 * stride)
    assert network(image).features[0].shape == image.shape
    wider = network(torch.randn(1, 3, 2 * stride + 1, 3 * stride + 1))
    assert wider.features[0].shape == (1, 3, 3 * stride, 4 * stride)
    assert (wider.features[0][..., 2 * stride + 1 :, :] == 0).all()
    assert wider.size == (2 * stride + 1, 3 * stride + 1)


class Columns(nn.Module):
    """Stands for a segmenter that gives the first of two classes a probability that rises with the column."""

    def forward(self, image: Tensor) -> SegmenterOutput:
        share = ((torch.arange(image.shape[-1]) + 0.5) / image.shape[-1]).expand(1, 1, *image.shape[-2:])
        return SegmenterOutput(torch.cat([share, 1 - share], 1).log(), None, [])


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0])
def test_probabilities_of_smaller_and_larger_views_lie_where_their_pixels_are(scale: float):
    """A pixel is an area: half of a column of a half-sized view is a column of the image."""
    probability = multi_scale_probability(Columns(), torch.zeros(1, 3, 32, 64), scales=(scale,), flip=False, divisor=4)
    expected = (torch.arange(64) + 0.5) / 64
    inner = slice(2, -2)  # beyond the middle of the outermost cells of a coarse map its values are constant
    torch.testing.assert_close(probability[0, 0, :, inner], expected[inner].expand(32, -1))
