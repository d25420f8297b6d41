import pytest
import torch

from dhr_lightning.ops import heatmaps
from dhr_lightning.ops.cam import min_max_normalize
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.heatmaps import class_heatmaps, final_weights, group_weights, supervised_heatmaps
from dhr_lightning.ops.resize import resize_maps, valid_cells
from dhr_lightning.ops.transport.plan import transport_weights

CLASSES = ImageClasses(torch.tensor([[0, 3]]), 1)
MASK = torch.tensor([[[0, 0, 3, 3]]])
FEATURES = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]]).view(1, 2, 1, 4)


def test_heatmaps_by_hand():
    result = class_heatmaps(FEATURES, MASK, CLASSES)
    slope = torch.tensor([1.0, 2.0]) / 5**0.5
    cosine = torch.stack([slope[0], slope[0], slope[1], slope.sum() / 2**0.5])
    expected = (cosine - cosine.min()) / (cosine.max() - cosine.min())
    torch.testing.assert_close(result.maps[0, 1, 0], expected)
    torch.testing.assert_close(result.maps[0, 0, 0], torch.tensor([1.0, 1.0, 0.0, 0.5**0.5]))
    opposite = FEATURES * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    positive = class_heatmaps(opposite, MASK, CLASSES, mode="relu").maps[0, 0, 0]
    torch.testing.assert_close(positive, torch.tensor([1.0, 1.0, 0.0, 0.5**0.5]))
    assert (
        class_heatmaps(torch.tensor([1.0, 1.0, -1.0, 0.0]).view(1, 1, 1, 4), MASK, CLASSES, mode="relu").maps >= 0
    ).all()
    soft = class_heatmaps(FEATURES, MASK, CLASSES, mode="softmax", temperature=0.5).maps
    torch.testing.assert_close(soft[0, 1, 0, 0], ((slope[0] - 1) / 0.5).sigmoid())


def test_the_temperature_is_a_tenth_by_default():
    default, tenth = (class_heatmaps(FEATURES, MASK, CLASSES, mode="softmax", **t) for t in ({}, {"temperature": 0.1}))
    assert torch.equal(default.maps, tenth.maps)


def test_cosines_of_more_levels_are_averaged_on_the_first_grid():
    coarse = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # classes 0 and 3 have a cell each
    both = class_heatmaps(FEATURES, MASK, CLASSES, levels=[coarse], mode="relu", pooling="area")
    alone = class_heatmaps(FEATURES, MASK, CLASSES, mode="relu", pooling="area").maps
    of_coarse = resize_maps(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), (1, 4))
    torch.testing.assert_close(both.maps, (alone + of_coarse) / 2)


def test_absent_classes_and_empty_images_are_zero():
    for mode in ("min_max", "relu", "softmax"):
        result = class_heatmaps(FEATURES, torch.full_like(MASK, 255), CLASSES, mode=mode)
        assert not result.active.any()
        assert result.maps.abs().sum() == 0
        single = class_heatmaps(FEATURES, MASK.clamp_min(3), CLASSES, mode=mode)
        assert single.active.tolist() == [[False, True]]
        assert single.maps[0, 0].sum() == 0


def test_group_weights_multiply_overlapping_groups():
    heat = torch.rand(2, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    groups = torch.zeros(2, 3, 3, dtype=torch.bool)
    groups[1, 0], groups[1, 1] = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    weights = group_weights(heat, groups)
    assert (weights[0] == 1).all()
    flat = heat[1].flatten(1)
    first, second = transport_weights(flat[:2]), transport_weights(flat[1:])
    torch.testing.assert_close(weights[1, 0].flatten(), first[0])
    torch.testing.assert_close(weights[1, 1].flatten(), first[1] * second[0])
    torch.testing.assert_close(weights[1, 2].flatten(), second[1])
    assert (group_weights(heat, groups & False) == 1).all()


def test_supervised_maps_only_for_images_with_groups():
    levels = [torch.rand(2, 4, 3, 3), torch.rand(2, 6, 6, 6)]
    mask = torch.randint(0, 2, (2, 12, 12))
    classes = ImageClasses(torch.tensor([[0, 1], [0, 1]]), 1)
    groups = torch.zeros(2, 2, 2, dtype=torch.bool)
    groups[1, 0] = True
    maps = supervised_heatmaps(levels, mask, classes, groups=groups, grid=(3, 3))
    assert maps[0].sum() == 0
    torch.testing.assert_close(maps[1].amax((1, 2)), torch.ones(2))
    torch.testing.assert_close(maps[1].amin((1, 2)), torch.zeros(2))


@pytest.mark.parametrize("grouped", [(1,), (0, 1, 2), (2, 3), ()])
@pytest.mark.parametrize("padded", [False, True])
def test_supervised_maps_do_not_depend_on_how_many_images_have_groups(grouped, padded):
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(4, d, *grid, generator=generator) for d, grid in ((5, (4, 5)), (7, (4, 5)), (6, (8, 10)))]
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (4, 16, 20), generator=generator)]
    keys = torch.tensor([[0, 1, 2], [0, 2, -1], [1, 2, -1], [0, 1, 2]])
    valid = torch.ones(4, 16, 20, dtype=torch.bool)
    valid[:, 12:] = not padded
    groups = torch.zeros(4, 3, 3, dtype=torch.bool)
    groups[list(grouped), 0, :2] = True
    near = torch.nn.functional.adaptive_max_pool2d(valid[:, None].float(), (4, 5))[:, 0] > 0
    result = supervised_heatmaps(levels, mask, ImageClasses(keys, 1, valid), groups=groups, grid=(4, 5))
    for b in range(4):
        one = slice(b, b + 1)
        classes = ImageClasses(keys[one], 1, valid[one])
        each = [class_heatmaps(level[one], mask[one], classes).maps for level in levels]
        each[2] = resize_maps(each[2], (4, 5), valid=valid_cells(valid[one], (8, 10)))
        expected = min_max_normalize(torch.stack(each).mean(0), valid=near[one])[0]
        torch.testing.assert_close(result[b], expected if b in grouped else torch.zeros_like(expected))


def test_levels_on_one_grid_share_their_cell_labels(monkeypatch):
    grids = []
    original = heatmaps.cell_labels
    monkeypatch.setattr(
        heatmaps, "cell_labels", lambda *a, grid, **k: (grids.append(grid), original(*a, grid=grid, **k))[1]
    )
    levels = [torch.rand(1, d, *grid) for d, grid in ((4, (3, 3)), (6, (3, 3)), (5, (6, 6)))]
    groups = torch.ones(1, 2, 2, dtype=torch.bool)
    heatmaps.supervised_heatmaps(levels, MASK.repeat(1, 6, 3), CLASSES, groups=groups, grid=(3, 3))
    assert grids == [(3, 3), (6, 6)]


def test_area_shares_hold_back_small_classes():
    heat = torch.rand(1, 2, 1, 200, generator=torch.Generator().manual_seed(0))
    active = torch.ones(1, 2, dtype=torch.bool)
    shares = torch.tensor([[9.0, 1.0]])
    mass = final_weights(heat, active, marginal="area", area=shares, stopping="marginal").mean((2, 3))
    torch.testing.assert_close(mass, shares / 10, atol=0.01, rtol=0)
    torch.testing.assert_close(final_weights(heat, active)[0, :, 0], transport_weights(heat[0, :, 0]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Expected `heatmap` to be one of min_max, relu, softmax, but got 'cosine'"):
        class_heatmaps(FEATURES, MASK, CLASSES, mode="cosine")
    with pytest.raises(ValueError, match=r"Expected `temperature` > 0, but got 0\.0\."):
        class_heatmaps(FEATURES, MASK, CLASSES, temperature=0.0)
