import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.ops.pooling import cell_labels, class_average_pooling, cosine_heatmaps

MASK = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 255], [255, 255, 2, 0], [255, 1, 0, 9]]])
KEYS = torch.tensor([[0, 1, 2, -1]])


def test_cell_labels_by_hand():
    weights = cell_labels(MASK, KEYS, grid=(2, 2))[0]
    assert weights[0].tolist() == [1, 0, 0, 1]  # bottom right is 2 0 0 9: background wins
    assert weights[1].tolist() == [0, 1, 0, 0]
    assert weights[2].tolist() == [0, 0, 0, 0.25]  # wins no cell, so its area counts
    assert weights[3].tolist() == [0, 0, 0, 0]


def test_ties_go_to_the_first_class_and_to_classes_before_ignore():
    mask = torch.tensor([[[2, 1, 255, 2], [1, 2, 255, 2]]])
    assert cell_labels(mask, torch.tensor([[1, 2]]), grid=(1, 2))[0].tolist() == [[1, 0], [0, 1]]


def test_invalid_pixels_do_not_count():
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, :2] = False
    valid[0, :2, 2:] = False
    assert cell_labels(MASK, KEYS, grid=(2, 2), valid=valid)[0, :2].tolist() == [[1, 0, 0, 1], [0.25, 0, 0.25, 0]]


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cell_labels_equal_a_count_per_cell(size, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (1, *size), generator=generator)]
    keys = torch.tensor([[0, 1, 2]])
    area = torch.zeros(4, *grid)
    for y in range(grid[0]):
        for x in range(grid[1]):
            rows = slice(y * size[0] // grid[0], -(-(y + 1) * size[0] // grid[0]))
            window = mask[0, rows, x * size[1] // grid[1] : -(-(x + 1) * size[1] // grid[1])]
            area[:, y, x] = torch.stack([(window == v).float().mean() for v in (0, 1, 2, 255)])
    result = cell_labels(mask, keys, grid=grid)[0].view(3, *grid)
    for k in range(3):
        won = (area.argmax(0) == k).float()
        torch.testing.assert_close(result[k], won if won.any() else area[k])
    torch.testing.assert_close(cell_labels(mask, keys, grid=grid, mode="area")[0].view(3, *grid), area[:3])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_and_heatmaps_by_hand(layout):
    features = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 2.0, 0.0, 0.0]]).view(1, 2, 2, 2)
    features = features.contiguous(memory_format=layout)
    weights = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]])
    centroids, exists = class_average_pooling(features, weights)
    assert exists.tolist() == [[True, True, False, False]]  # no cell; only a zero vector
    torch.testing.assert_close(centroids[0, 0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(centroids[0, 1], torch.tensor([1.0, 2.0]) / 5**0.5)
    heat = cosine_heatmaps(features, centroids)
    torch.testing.assert_close(heat[0, 0], torch.tensor([[1.0, 0.8], [0.6, 0.0]]))
    assert heat[0, 2:].sum() == 0


def test_centroids_ignore_feature_scale_and_heatmaps_are_cosines():
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(2, 130, 3, 4, generator=generator), torch.rand(2, 3, 12, generator=generator)
    centroids, _ = class_average_pooling(features, weights)
    heat = cosine_heatmaps(features * 40, centroids)
    expected = torch.cosine_similarity(features[:, None], centroids[..., None, None], dim=2)
    torch.testing.assert_close(heat, expected)
    moved, _ = class_average_pooling(features, weights.flip(1))
    torch.testing.assert_close(moved, centroids.flip(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_autocast(dtype):
    features, weights = torch.rand(1, 5, 3, 3).to(dtype), torch.rand(1, 2, 9)
    with torch.autocast("cpu", dtype=dtype):
        centroids, _ = class_average_pooling(features, weights)
        heat = cosine_heatmaps(features, centroids)
    assert heat.dtype == centroids.dtype == torch.float32
    torch.testing.assert_close(centroids, class_average_pooling(features.float(), weights)[0])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Expected `mode` to be one of majority, area, but got 'mean'"):
        cell_labels(MASK, KEYS, grid=(2, 2), mode="mean")
    with pytest.raises(ValueError, match=r"Expected `weights` of shape .* \(1, 2, 4\), but got \(1, 2, 5\)"):
        class_average_pooling(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="Expected `centroids` of shape"):
        cosine_heatmaps(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="Expected `valid` of shape"):
        cell_labels(MASK, KEYS, grid=(2, 2), valid=torch.ones(1, 2, 2, dtype=torch.bool))
