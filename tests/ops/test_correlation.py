import pytest
import torch

from dhr_lightning.ops.correlation import correlation_groups


def unit(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], -1)[None]


def members(groups):
    return [row.nonzero()[:, 0].tolist() for row in groups[0] if row.any()]


# cos 30 = .87 > .8 > .5 = cos 60: neighbours are alike, second neighbours are not
CHAIN = unit(0.0, 30.0, 60.0, 180.0)
EVERY = torch.ones(1, 4, dtype=torch.bool)


def test_components_join_a_chain_and_rows_do_not():
    assert members(correlation_groups(CHAIN, present=EVERY)) == [[0, 1, 2]]
    assert members(correlation_groups(CHAIN, present=EVERY, mode="row_upper")) == [[0, 1], [1, 2]]
    alike = unit(0.0, 10.0, 20.0)
    present = torch.ones(1, 3, dtype=torch.bool)
    assert members(correlation_groups(alike, present=present, mode="row_upper")) == [[0, 1, 2], [1, 2]]


def test_absent_classes_break_the_chain():
    present = torch.tensor([[True, False, True, True]])
    assert members(correlation_groups(CHAIN, present=present)) == []


def test_tau_one_and_opposite_vectors_give_no_group():
    assert members(correlation_groups(unit(5.0, 5.0), present=torch.ones(1, 2).bool(), tau=1.0)) == []
    assert members(correlation_groups(unit(0.0, 180.0), present=torch.ones(1, 2).bool(), tau=0.0)) == []


@pytest.mark.parametrize("seed", range(20))
def test_components_of_long_chains_in_any_order(seed):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    angles = torch.cat([torch.arange(7) * 30.0, 225 + torch.arange(5) * 20.0])[order]  # gaps of 45 and 55 degrees
    groups = members(correlation_groups(unit(*angles.tolist()), present=torch.ones(1, 12).bool()))
    first = sorted((order < 7).nonzero()[:, 0].tolist())
    second = sorted((order >= 7).nonzero()[:, 0].tolist())
    assert sorted(groups) == sorted([first, second])


@pytest.mark.parametrize("mode", ["components", "row_upper"])
def test_groups_of_a_batch_equal_one_by_one_and_follow_permuted_classes(mode):
    generator = torch.Generator().manual_seed(0)
    centroids = torch.nn.functional.normalize(torch.randn(6, 5, 2, generator=generator), dim=-1)
    present = torch.rand(6, 5, generator=generator) < 0.8
    together = correlation_groups(centroids, present=present, mode=mode)
    for b in range(6):
        alone = correlation_groups(centroids[b : b + 1], present=present[b : b + 1], mode=mode)
        assert torch.equal(together[b], alone[0])
        assert not together[b][:, ~present[b]].any()
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = correlation_groups(centroids[:, order], present=present[:, order])
    whole = correlation_groups(centroids, present=present)
    for b in range(6):
        sets = {tuple(sorted(order[row].tolist())) for row in moved[b] if row.any()}
        assert sets == {tuple(row.nonzero()[:, 0].tolist()) for row in whole[b] if row.any()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_autocast(dtype):
    with torch.autocast("cpu", dtype=dtype):
        assert members(correlation_groups(CHAIN.to(dtype), present=EVERY)) == [[0, 1, 2]]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"Expected `tau` in \[0.0, 1.0\], but got 1.5"):
        correlation_groups(CHAIN, present=EVERY, tau=1.5)
    with pytest.raises(ValueError, match="Expected `mode` to be one of components, row_upper"):
        correlation_groups(CHAIN, present=EVERY, mode="rows")
    with pytest.raises(ValueError, match="Expected `present` of shape"):
        correlation_groups(CHAIN, present=EVERY[:, :2])
