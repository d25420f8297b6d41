import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.models.standardize import StandardizedModule
from dhr_lightning.ops.feature_statistics import FeatureStatistics


def test_until_statistics_are_set_nothing_changes():
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(StandardizedModule(3).standardize(features), features)


def test_features_get_mean_zero_and_deviation_one_and_constant_channels_are_shifted():
    features = torch.randn(4, 3, 6, 7, generator=torch.Generator().manual_seed(0)) * 5 + 20
    features[:, 2] = 7.0
    statistics = FeatureStatistics()
    statistics.update(features)
    network = StandardizedModule(3)
    network.set_statistics(*statistics.result())
    found = network.standardize(features)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]))
    assert network.standardize(features.half()).dtype == torch.float32


def test_statistics_are_part_of_the_state():
    network, other = StandardizedModule(2), StandardizedModule(2)
    network.set_statistics(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert set(network.state_dict()) == {"mean", "std"}
    other.load_state_dict(network.state_dict())
    assert (other.mean.tolist(), other.std.tolist()) == ([1.0, 2.0], [3.0, 4.0])
    assert list(other.parameters()) == []


def test_wrong_statistics_are_named():
    network = StandardizedModule(2)
    with pytest.raises(ValueError, match=r"Expected `std` of shape \(D\) = \(2,\), but got \(3,\)"):
        network.set_statistics(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="Expected `mean` to be finite"):
        network.set_statistics(torch.tensor([0.0, torch.nan]), torch.ones(2))
    with pytest.raises(ValueError, match=r"Expected `std` >= 0, but got -1\.0"):
        network.set_statistics(torch.zeros(2), torch.tensor([1.0, -1.0]))


def projected(
    dtype: torch.dtype = torch.float32, *, channels: int = 256, offset: float = 4.0
) -> tuple[StandardizedModule, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, features some deviations away from 0, and a weight and a bias."""
    generator = torch.Generator().manual_seed(0)
    network = StandardizedModule(channels)
    mean, std = offset + torch.rand(channels, generator=generator), 0.5 + torch.rand(channels, generator=generator)
    network.set_statistics(mean, std)
    features = torch.randn(4, channels, 16, 16, generator=generator) * std[:, None, None] + mean[:, None, None]
    weight, bias = torch.randn(8, channels, generator=generator) * 0.1, torch.randn(8, generator=generator)
    return network, features.to(dtype), weight, bias


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_projection_is_that_of_the_standardised_features(dtype: torch.dtype, biased: bool):
    network, features, weight, bias = projected(dtype)
    found = network.project(features, weight, bias if biased else None)
    expected = F.conv2d(network.standardize(features), weight[..., None, None], bias if biased else None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(features, projected(dtype)[1])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_projection_under_autocast_has_its_type_and_no_offset(dtype: torch.dtype, biased: bool):
    """Rounding in bfloat16 differs from cell to cell: over many it is next to nothing."""
    network, features, weight, bias = projected(dtype)
    expected = network.project(features, weight, bias if biased else None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network.project(features, weight, bias if biased else None)
    assert found.dtype == torch.bfloat16
    error = found - expected
    assert 0 < float(error.abs().max()) < 0.2
    assert float(error.mean((0, 2, 3)).abs().max()) < 0.01


@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_a_projection_are_those_of_the_standardised_features(biased: bool):
    network, features, weight, bias = projected(torch.float64, channels=5)
    network, features, scale = network.double(), features[:2, :, :3, :2], torch.randn(2, 8, 3, 2).double()
    gradients = []
    for folded in (True, False):
        inputs = [tensor.detach().double().requires_grad_() for tensor in (features, weight, bias)]
        kernel, shift = inputs[1], inputs[2] if biased else None
        if folded:
            maps = network.project(inputs[0], kernel, shift)
        else:
            maps = F.conv2d(network.standardize(inputs[0]), kernel[..., None, None], shift)
        (maps * scale).sum().backward()
        gradients.append([tensor.grad for tensor in inputs[: 3 if biased else 2]])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_projection_under_autocast_has_gradients_in_the_type_of_the_weights():
    network, features, weight, bias = projected(torch.float16, offset=0.0)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    network.project(features, weight, bias).square().mean().backward()
    expected, weight.grad, bias.grad = (weight.grad, bias.grad), None, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.project(features, weight, bias).float().square().mean().backward()
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    for found, exact in zip((weight.grad, bias.grad), expected, strict=True):
        assert float((found - exact).norm() / exact.norm()) < 0.03
