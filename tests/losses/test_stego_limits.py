"""What STEGO's settings and samples do at the ends of their ranges."""

import pytest
import torch

from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.stego import sample_points, stego_settings


@pytest.mark.parametrize("name", ["points", "negatives", "neighbours", "crop_size"])
def test_counts_may_be_one_and_not_zero(name: str):
    assert getattr(stego_settings(**{name: 1}), name) == 1
    with pytest.raises(ConfigError, match=rf"stego\.{name} >= 1, but got 0"):
        stego_settings(**{name: 0})


def test_a_crop_may_be_the_whole_image_and_no_more():
    assert stego_settings(crop_ratio=1.0).crop_ratio == 1
    for ratio in (-0.1, 0.0, 1.01):
        with pytest.raises(ConfigError, match=rf"stego\.crop_ratio in \(0, 1\], but got {ratio}"):
            stego_settings(crop_ratio=ratio)


@pytest.mark.parametrize("name", ["shifts", "weights"])
@pytest.mark.parametrize("values", [(), (0.1, 0.2), (0.1, 0.2, 0.3, 0.4)])
def test_there_are_three_shifts_and_three_weights(name: str, values: tuple[float, ...]):
    with pytest.raises(ConfigError, match=rf"stego\.{name} to be three numbers \(intra, inter, negative\)"):
        stego_settings(**{name: values})


def test_of_several_unknown_settings_the_first_is_named():
    with pytest.raises(ConfigError, match=r"Unknown stego\.alpha\. Known: preset, shifts, .*, crop_ratio\."):
        stego_settings(omega=1, points=2, alpha=2)


def test_samples_beyond_the_border_are_those_at_the_border():
    """As published: `padding_mode="border"`."""
    maps = torch.tensor([[[[1.0, 2.0]], [[5.0, 1.0]]]])
    points = sample_points(maps, torch.tensor([[[-3.0, 0.0], [-1.0, 0.0], [3.0, 0.0], [1.0, 0.0]]]))
    torch.testing.assert_close(points[..., 0], points[..., 1])
    torch.testing.assert_close(points[..., 2], points[..., 3])


@pytest.mark.parametrize(("length", "expected"), [(1e-3, 1.0), (1e-9, 1.0), (5e-11, 0.5)])
def test_only_vectors_shorter_than_1e_10_get_less_than_unit_length(length: float, expected: float):
    maps = torch.tensor([0.6, -0.8]).view(1, 2, 1, 1) * length
    sampled = sample_points(maps, torch.zeros(1, 1, 2))
    torch.testing.assert_close(sampled[0, :, 0], expected * torch.tensor([0.6, -0.8]))
