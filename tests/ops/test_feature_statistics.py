import pytest
import torch

from dhr_lightning.ops.feature_statistics import FeatureStatistics


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in ((2, 3), (5, 4), (1, 7)):
        features = torch.randn(3, 6, *size, generator=generator) * 4 + torch.arange(6.0)[:, None, None] * 100
        found.append((features, torch.rand(3, *size, generator=generator) < 0.6))
    return found


def test_it_equals_the_statistics_of_all_cells_together():
    statistics = FeatureStatistics()
    for features, valid in batches():
        statistics.update(features, valid)
    cells = torch.cat([features.movedim(1, -1)[valid] for features, valid in batches()]).double()
    mean, std = statistics.result()
    assert statistics.count == len(cells)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, cells.mean(0).float())
    torch.testing.assert_close(std, cells.std(0, correction=0).float())


def test_all_cells_count_where_none_are_named():
    statistics = FeatureStatistics()
    statistics.update(torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2).half())
    mean, std = statistics.result()
    assert (statistics.count, mean.tolist(), std.tolist()) == (4, [4.0], [pytest.approx(5**0.5)])


def test_batches_do_not_matter_and_order_hardly_does():
    together, alone, backwards = FeatureStatistics(), FeatureStatistics(), FeatureStatistics()
    for features, valid in batches():
        together.update(features, valid)
        for index in range(3):
            alone.update(features[index : index + 1], valid[index : index + 1])
    for features, valid in reversed(batches()):
        backwards.update(features.flip(0), valid.flip(0))
    for found, expected in zip(alone.result(), together.result(), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(backwards.result(), together.result(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_small_deviation_on_a_large_mean_survives():
    values = torch.tensor([4096.0, 4097.0, 4098.0, 4099.0]).repeat(500)
    statistics = FeatureStatistics()
    for part in values.split(40):
        statistics.update(part.view(1, 1, 5, 8))
    mean, std = statistics.result()
    assert mean.item() == 4097.5
    assert std.item() == pytest.approx(1.25**0.5, rel=1e-6)


def test_what_is_kept_does_not_grow():
    statistics = FeatureStatistics()
    for _ in range(5):
        statistics.update(torch.randn(2, 4, 3, 3))
    kept = [value for value in vars(statistics).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in kept) == 8


def test_padding_may_be_anything_but_a_valid_cell_may_not():
    features, valid = torch.ones(1, 2, 2, 2), torch.tensor([[[True, True], [True, False]]])
    features[..., 1, 1] = torch.nan
    statistics = FeatureStatistics()
    statistics.update(features, valid)
    assert statistics.result()[0].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="Expected `features` to be finite, but 2 of 8 values are not"):
        statistics.update(features)


def test_wrong_calls_are_named():
    statistics = FeatureStatistics()
    statistics.update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a valid cell at least, but got none"):
        statistics.result()
    with pytest.raises(ValueError, match=r"Expected `features` of shape \(B, D, h, w\), but got \(2, 3\)"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"Expected `valid` of shape .* \(1, 2, 2\), but got \(1, 3, 2\)"):
        statistics.update(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, dtype=torch.bool))
    statistics.update(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"Expected `features` of shape .* \(1, 3, 2, 2\), but got \(1, 4, 2, 2\)"):
        statistics.update(torch.zeros(1, 4, 2, 2))
