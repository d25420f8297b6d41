import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.classifier import CAMClassifier, masked_mean, multi_scale_cam, published_cam


@pytest.fixture(scope="module")
def network() -> CAMClassifier:
    torch.manual_seed(0)
    return CAMClassifier("small32", 3, output_stride=8).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_one_map_per_tag_and_no_bias(network: CAMClassifier, image: Tensor):
    assert network(image).shape == (2, 3, 4, 6)
    assert network.classifier.bias is None


def test_maps_are_the_classifier_on_the_last_features(network: CAMClassifier, image: Tensor):
    features = network.encoder(image)[-1]
    expected = torch.einsum("bdhw,td->bthw", features, network.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(ConfigError, match="Unknown backbone 'nothing'"):
        CAMClassifier("nothing", 3)


def test_the_mean_of_a_whole_crop_is_the_plain_mean():
    maps = torch.randn(2, 3, 4, 6)
    valid = torch.ones(2, 32, 48, dtype=torch.bool)
    torch.testing.assert_close(masked_mean(maps, valid), maps.mean((2, 3)))
    torch.testing.assert_close(masked_mean(maps, None), maps.mean((2, 3)))


def test_padding_has_no_vote():
    maps = torch.randn(2, 3, 4, 6)
    valid = torch.zeros(2, 32, 48, dtype=torch.bool)
    valid[0, 8:24, 16:] = True
    valid[1, :8, :8] = True
    disturbed = maps.clone()
    disturbed[0, :, 0], disturbed[0, :, 3], disturbed[0, :, :, :2] = 1e4, -1e4, 1e4
    disturbed[1, :, 1:], disturbed[1, :, :, 1:] = 1e4, -1e4
    expected = torch.stack([maps[0, :, 1:3, 2:].mean((1, 2)), maps[1, :, 0, 0]])
    torch.testing.assert_close(masked_mean(maps, valid), expected)
    torch.testing.assert_close(masked_mean(disturbed, valid), expected)


def test_a_cell_votes_with_its_valid_share():
    maps = torch.tensor([[[[1.0, 5.0]]]])
    valid = torch.ones(1, 8, 16, dtype=torch.bool)
    valid[:, :, 10:] = False  # a quarter of the second cell is left
    assert masked_mean(maps, valid).item() == pytest.approx((1 + 0.25 * 5) / 1.25)


def test_a_crop_without_valid_pixels_gives_zero_not_nan():
    maps = torch.randn(1, 2, 2, 2)
    assert masked_mean(maps, torch.zeros(1, 16, 16, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


@torch.no_grad()
def test_one_scale_without_mirror_is_the_plain_rectified_map(network: CAMClassifier, image: Tensor):
    cam = multi_scale_cam(network, image, scales=(1.0,), flip=False, size=(4, 6))
    torch.testing.assert_close(cam, network(image).relu())
    resized = multi_scale_cam(network, image, scales=(1.0,), flip=False, size=(8, 12))
    torch.testing.assert_close(resized, F.interpolate(cam, (8, 12), mode="bilinear", align_corners=False))


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
def test_the_map_of_a_mirrored_image_is_the_mirrored_map(
    network: CAMClassifier, image: Tensor, scales: tuple[float, ...]
):
    plain = multi_scale_cam(network, image, scales=scales, flip=True, size=(8, 12))
    mirrored = multi_scale_cam(network, image.flip(-1), scales=scales, flip=True, size=(8, 12))
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=1e-5, rtol=1e-4)
    without = multi_scale_cam(network, image, scales=scales, flip=False, size=(8, 12))
    without_mirrored = multi_scale_cam(network, image.flip(-1), scales=scales, flip=False, size=(8, 12))
    assert (without_mirrored.flip(-1) - without).abs().max() > 1e-3
    torch.testing.assert_close(plain, without + without_mirrored.flip(-1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_scales_add_up(network: CAMClassifier, image: Tensor):
    both = multi_scale_cam(network, image, scales=(1.0, 1.5), flip=False, size=(4, 6))
    larger = F.interpolate(image, (48, 72), mode="bilinear", align_corners=False)
    second = F.interpolate(network(larger).relu(), (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(both, network(image).relu() + second, atol=1e-5, rtol=1e-4)


def test_activation_of_a_place_stays_at_that_place():
    image = torch.zeros(1, 3, 32, 48)
    image[..., 4:8, 40:44] = 1
    for flip in (False, True):
        cam = multi_scale_cam(nn.AvgPool2d(4), image, scales=(1.0, 0.5, 2.0), flip=flip, size=(8, 12))
        assert divmod(int(cam[0, 0].argmax()), 12) == (1, 10)
        assert (cam >= 0).all()


@torch.no_grad()
def test_the_published_map_halves_features_of_stride_8_with_aligned_corners():
    classifier = nn.Conv2d(5, 3, 1, bias=False)
    feature = torch.randn(2, 5, 8, 12)
    cam = published_cam(classifier, feature, stride=8)
    assert cam.shape == (2, 3, 4, 6)
    assert cam.min() == 0
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # corners stay where they are
        expected = torch.einsum("bd,td->bt", feature[..., row, column], classifier.weight[:, :, 0, 0]).relu()
        torch.testing.assert_close(cam[..., row, column], expected)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    halved = published_cam(nn.Identity(), ramp, stride=8)
    torch.testing.assert_close(halved[0, 0, 0], torch.tensor([0.0, 7 / 3, 14 / 3, 7.0]))
    plain = published_cam(classifier, feature, stride=16)
    torch.testing.assert_close(plain, classifier(feature).relu())
