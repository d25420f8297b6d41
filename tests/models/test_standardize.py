import pytest
import torch

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
