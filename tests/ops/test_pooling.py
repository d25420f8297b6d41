import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.pooling import cell_labels, class_average_pooling, class_cosines, cosine_heatmaps

MASK = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 255], [255, 255, 2, 0], [255, 1, 0, 9]]])
KEYS = torch.tensor([[0, 1, 2, -1]])
CLASSES = ImageClasses(KEYS, 1)


def test_cell_labels_by_hand():
    weights = cell_labels(MASK, CLASSES, grid=(2, 2))[0]
    assert weights[0].tolist() == [1, 0, 0, 1]  # bottom right is 2 0 0 9: background wins
    assert weights[1].tolist() == [0, 1, 0, 0]
    assert weights[2].tolist() == [0, 0, 0, 0.25]  # wins no cell, so its area counts
    assert weights[3].tolist() == [0, 0, 0, 0]


def test_ties_go_to_the_first_class_and_to_classes_before_ignore():
    mask = torch.tensor([[[2, 1, 255, 2], [1, 2, 255, 2]]])
    assert cell_labels(mask, ImageClasses(torch.tensor([[1, 2]]), 1), grid=(1, 2))[0].tolist() == [[1, 0], [0, 1]]


def test_invalid_pixels_do_not_count():
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, :2] = False
    valid[0, :2, 2:] = False
    assert cell_labels(MASK, ImageClasses(KEYS, 1, valid), grid=(2, 2))[0, :2].tolist() == [
        [1, 0, 0, 1],
        [0.25, 0, 0.25, 0],
    ]


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_cell_labels_equal_a_count_per_cell(size, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (1, *size), generator=generator)]
    classes = ImageClasses(torch.tensor([[0, 1, 2]]), 1)
    area = torch.zeros(4, *grid)
    for y in range(grid[0]):
        for x in range(grid[1]):
            rows = slice(y * size[0] // grid[0], -(-(y + 1) * size[0] // grid[0]))
            window = mask[0, rows, x * size[1] // grid[1] : -(-(x + 1) * size[1] // grid[1])]
            area[:, y, x] = torch.stack([(window == v).float().mean() for v in (0, 1, 2, 255)])
    result = cell_labels(mask, classes, grid=grid)[0].view(3, *grid)
    for k in range(3):
        won = (area.argmax(0) == k).float()
        torch.testing.assert_close(result[k], won if won.any() else area[k])
    torch.testing.assert_close(cell_labels(mask, classes, grid=grid, mode="area")[0].view(3, *grid), area[:3])


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("depth", [3, 64, 150])
def test_one_pass_equals_plain_cosines(layout, depth):
    generator = torch.Generator().manual_seed(depth)
    features = torch.randn(3, depth, 4, 5, generator=generator, dtype=torch.float64)
    features[1, :, 0, 0] = 0.0
    weights = torch.rand(3, 4, 20, generator=generator)
    weights[2, 1] = 0.0
    cosine, centroids, exists = class_cosines(features.contiguous(memory_format=layout), weights)
    for b in range(3):
        for k in range(4):
            mean = (features[b].flatten(1) * weights[b, k].double()).sum(1)
            expected = torch.cosine_similarity(features[b], mean[:, None, None], dim=0)
            torch.testing.assert_close(cosine[b, k], expected)
            torch.testing.assert_close(centroids[b, k], torch.nn.functional.normalize(mean, dim=0))
    assert exists.tolist() == [[True] * 4, [True] * 4, [True, False, True, True]]
    assert cosine[1, :, 0, 0].tolist() == [0.0] * 4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_never_leads_beyond_one(sign):
    features = torch.randn(1, 7, 40, 50, generator=torch.Generator().manual_seed(0))
    centroids = sign * torch.nn.functional.normalize(features.flatten(2).mT, dim=2)  # (1, N, 7)
    exact = (centroids[0] * torch.nn.functional.normalize(features.flatten(2).mT, dim=2)[0]).sum(1).abs()
    assert exact.max() > 1, "without a clamp some lengths are above 1"
    cosine = cosine_heatmaps(features, centroids)
    assert cosine.min() >= -1
    assert cosine.max() <= 1
    assert (sign * cosine[0].flatten(1).diagonal()).min() > 1 - 1e-6


def test_labels_of_a_batch_with_padding_equal_one_by_one():
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([0, 1, 2, 7, 255])[torch.randint(0, 5, (3, 11, 13), generator=generator)]
    keys = torch.tensor([[0, 1, 2], [1, 7, -1], [2, -1, -1]])
    valid = torch.rand(3, 11, 13, generator=generator) < 0.7
    for mode in ("majority", "area"):
        together = cell_labels(mask, ImageClasses(keys, 1, valid), grid=(4, 5), mode=mode)
        for b in range(3):
            count = int((keys[b] >= 0).sum())
            own = ImageClasses(keys[b : b + 1, :count], 1, valid[b : b + 1])
            alone = cell_labels(mask[b : b + 1], own, grid=(4, 5), mode=mode)
            torch.testing.assert_close(together[b, :count], alone[0])
            assert together[b, count:].sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_autocast(dtype):
    features, weights = torch.rand(1, 5, 3, 3).to(dtype), torch.rand(1, 2, 9)
    with torch.autocast("cpu", dtype=dtype):
        centroids, _ = class_average_pooling(features, weights)
        heat = cosine_heatmaps(features, centroids)
        one_pass, _, _ = class_cosines(features, weights)
    assert heat.dtype == centroids.dtype == one_pass.dtype == torch.float32
    torch.testing.assert_close(one_pass, heat)
    torch.testing.assert_close(centroids, class_average_pooling(features.float(), weights)[0])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Expected `mode` to be one of majority, area, but got 'mean'"):
        cell_labels(MASK, CLASSES, grid=(2, 2), mode="mean")
    with pytest.raises(ValueError, match=r"Expected `weights` of shape .* \(1, 2, 4\), but got \(1, 2, 5\)"):
        class_average_pooling(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"Expected `weights` of shape .* \(1, 2, 4\), but got \(1, 2, 5\)"):
        class_cosines(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="Expected `centroids` of shape"):
        cosine_heatmaps(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="Expected `valid` of shape"):
        cell_labels(MASK, ImageClasses(KEYS, 1, torch.ones(1, 2, 2, dtype=torch.bool)), grid=(2, 2))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    generator = torch.Generator().manual_seed(2)
    mask, keys = torch.randint(0, 4, (2, 30, 40), generator=generator), torch.tensor([[0, 1, 3], [1, 2, -1]])
    features = torch.randn(2, 90, 7, 9, generator=generator)
    weights = cell_labels(mask, ImageClasses(keys, 1), grid=(7, 9))
    assert torch.equal(cell_labels(mask.cuda(), ImageClasses(keys.cuda(), 1), grid=(7, 9)).cpu(), weights)
    cosine, _, _ = class_cosines(features.cuda(), weights.cuda())
    torch.testing.assert_close(cosine.cpu(), class_cosines(features, weights)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_never_come_out(layout, bad):
    features, weights = torch.rand(2, 3, 4, 5), torch.rand(2, 2, 20)
    features[1, 2, 3, 4] = bad
    features = features.contiguous(memory_format=layout)
    weights[..., -1] = 0.0  # the cell belongs to no class
    message = "Expected `features` to be finite, but 1 of 120 values are not"
    with pytest.raises(ValueError, match=message):
        class_average_pooling(features, weights)
    with pytest.raises(ValueError, match=message):
        cosine_heatmaps(features, torch.rand(2, 2, 3))
    with pytest.raises(ValueError, match=message):
        class_cosines(features, weights)
