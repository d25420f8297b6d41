import numpy as np
import pytest
import torch

from dhr_lightning.ops.boundary import boundary_band
from tests.boundary_reference import blocks, eroded_band


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(24, 31), (9, 40), (1, 12), (12, 1), (1, 1)])
def test_band_is_the_mask_minus_its_erosion(shape, distance):
    masks = np.stack([blocks(shape, (2, 3), seed) for seed in range(3)] + [np.zeros(shape, np.int64)])
    expected = np.stack([eroded_band(mask, distance) for mask in masks])
    np.testing.assert_array_equal(boundary_band(torch.from_numpy(masks), distance=distance).numpy(), expected)


def test_noise_agrees_too():
    masks = np.random.default_rng(0).choice([3, 7], p=[0.98, 0.02], size=(2, 30, 40))
    expected = np.stack([eroded_band(mask, 2) for mask in masks])
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(boundary_band(torch.from_numpy(masks), distance=2).numpy(), expected)


def test_a_plain_image_has_a_frame():
    band = boundary_band(torch.zeros(1, 6, 8, dtype=torch.uint8), distance=2)
    assert band[0, 2:4, 2:6].sum() == 0
    assert int(band.sum()) == 48 - 8


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"`mask` of shape \(B, H, W\), but got \(4, 4\)"):
        boundary_band(torch.zeros(4, 4), distance=1)
    with pytest.raises(ValueError, match="`distance` > 0, but got 0"):
        boundary_band(torch.zeros(1, 4, 4), distance=0)


@pytest.mark.gpu
def test_same_on_the_device():
    masks = torch.from_numpy(np.stack([blocks((40, 50), (3, 4), seed) for seed in range(2)]))
    assert torch.equal(boundary_band(masks.cuda(), distance=3).cpu(), boundary_band(masks, distance=3))
