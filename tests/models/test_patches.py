import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dhr_lightning.models.patches import PatchEncoder, opponent_image

CENTROIDS = 12


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder(pixels: Tensor) -> PatchEncoder:
    encoder = PatchEncoder(CENTROIDS)
    encoder.fit(encoder.sample_patches(pixels, 400, torch.Generator().manual_seed(1)))
    return encoder


def plain_opponents(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One image `(3, H, W)`, pixel by pixel."""
    result = np.zeros(pixels.shape)
    for row in range(pixels.shape[1]):
        for column in range(pixels.shape[2]):
            red, green, blue = pixels[:, row, column].astype(float) / 255 + 0.02
            light = (red + green + blue) / 3
            result[:, row, column] = np.log(light) / 2, (red - green) / light, ((red + green) / 2 - blue) / light
    return result


def plain_activation(encoder: PatchEncoder, image: NDArray[np.float64], row: int, column: int) -> NDArray[np.float64]:
    """Activation `(D,)` of the patch with this place in the grid, mirrored at the border of the image."""
    mean, whitening, centroids = (t.double().numpy() for t in (encoder.mean, encoder.whitening, encoder.centroids))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    patch = padded[:, 2 * row : 2 * row + 6, 2 * column : 2 * column + 6].reshape(-1)
    whitened = (patch - mean) @ whitening
    distance = np.array([np.sqrt(((whitened - centroid) ** 2).sum()) for centroid in centroids])
    return np.maximum(distance.mean() - distance, 0)


def plain_features(encoder: PatchEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Features `(D, H / 4, W / 4)` of one image, cell by cell."""
    image = plain_opponents(pixels)
    height, width = pixels.shape[1] // 4, pixels.shape[2] // 4
    pooled = np.zeros((CENTROIDS, height, width))
    for row in range(height):
        for column in range(width):
            places = [(2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
            pooled[:, row, column] = np.mean([plain_activation(encoder, image, *place) for place in places], axis=0)
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.75) ** 2)
    weights /= weights.sum()
    result = np.zeros_like(pooled)
    for row in range(height):
        for column in range(width):
            for i, down in zip(range(-2, 3), weights, strict=True):
                for j, across in zip(range(-2, 3), weights, strict=True):
                    near = np.clip(row + i, 0, height - 1), np.clip(column + j, 0, width - 1)
                    result[:, row, column] += down * across * pooled[:, near[0], near[1]]
    return result


def test_opponent_colours_by_hand(pixels: Tensor):
    expected = np.stack([plain_opponents(image) for image in pixels.numpy()])
    np.testing.assert_allclose(opponent_image(pixels).numpy(), expected, atol=1e-5)


def test_grey_has_no_colour_and_shading_leaves_colour_alone():
    grey = torch.full((1, 3, 1, 1), 90, dtype=torch.uint8)
    assert opponent_image(grey)[0, 1:].abs().max() < 1e-6
    bright = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    difference = opponent_image(bright) - opponent_image(bright // 2)
    assert difference[0, 0] > 0.3
    assert difference[0, 1:].abs().max() < 0.08


def test_every_cell_equals_a_plain_loop(encoder: PatchEncoder, pixels: Tensor):
    features = encoder(pixels)
    assert features.shape == (2, CENTROIDS, 4, 5)
    for index in range(2):
        expected = plain_features(encoder, pixels[index].numpy())
        np.testing.assert_allclose(features[index].numpy(), expected, atol=1e-3)  # sums in another order
    assert features.std() > 0.05


def test_sampled_patches_are_patches_of_their_image(encoder: PatchEncoder, pixels: Tensor):
    patches = encoder.sample_patches(pixels, 7, torch.Generator().manual_seed(3)).numpy()
    assert patches.shape == (14, 108)
    for index in range(2):
        image = opponent_image(pixels)[index].numpy()
        known = {image[:, row : row + 6, column : column + 6].tobytes() for row in range(11) for column in range(15)}
        assert all(patch.tobytes() in known for patch in patches[7 * index : 7 * index + 7])


def test_whitened_patches_have_unit_variance_in_every_strong_direction(pixels: Tensor):
    encoder = PatchEncoder(CENTROIDS)
    patches = torch.randn(4000, 108, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, 108) + 5
    encoder.fit(patches, iterations=1)
    whitened = (patches - encoder.mean) @ encoder.whitening
    assert whitened.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(whitened.T @ whitened / 4000, torch.eye(108), atol=2e-3, rtol=0)


def test_weak_directions_are_not_blown_up():
    encoder = PatchEncoder(4)
    patches = torch.randn(500, 108, generator=torch.Generator().manual_seed(0))
    patches[:, 0] *= 1e-4
    encoder.fit(patches, iterations=1)
    whitened = (patches - encoder.mean) @ encoder.whitening
    assert whitened[:, 0].std() < 0.01


def test_fitting_is_repeatable_and_travels_with_the_state(encoder: PatchEncoder, pixels: Tensor):
    assert not PatchEncoder(CENTROIDS).fitted
    patches = encoder.sample_patches(pixels, 400, torch.Generator().manual_seed(1))
    again, loaded = PatchEncoder(CENTROIDS), PatchEncoder(CENTROIDS)
    torch.manual_seed(77)
    again.fit(patches)
    assert torch.equal(again.centroids, encoder.centroids)
    loaded.load_state_dict(encoder.state_dict())
    assert loaded.fitted
    assert torch.equal(loaded(pixels), encoder(pixels))
    assert not list(encoder.parameters())


def test_an_image_does_not_depend_on_the_rest_of_its_batch(encoder: PatchEncoder, pixels: Tensor):
    torch.testing.assert_close(encoder(pixels[1:])[0], encoder(pixels)[1], atol=1e-5, rtol=1e-4)
