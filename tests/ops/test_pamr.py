import numpy as np
import pytest
import torch

from dhr_lightning.ops.pixel_adaptive import box_index, pamr


def slow_pamr(image, probability, dilations, iterations, sigma):
    """Pixel by pixel, straight from the definition, with repeated borders."""
    _, height, width = image.shape
    offsets = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]

    def look(maps, y, x, centre):
        chosen = [o for o in offsets if centre or o != (0, 0)]
        rows = [min(max(y + dy, 0), height - 1) for dy, _ in chosen]
        columns = [min(max(x + dx, 0), width - 1) for _, dx in chosen]
        return maps[:, rows, columns]

    weights = np.zeros((height, width, 8 * len(dilations)))
    for y in range(height):
        for x in range(width):
            deviation = look(image, y, x, True).std(1, ddof=1)[:, None]
            distance = np.abs(look(image, y, x, False) - image[:, y, x][:, None])
            logits = -(distance / (sigma * deviation + 1e-8)).mean(0)
            weights[y, x] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for _ in range(iterations):
        smooth = np.zeros_like(probability)
        for y in range(height):
            for x in range(width):
                smooth[:, y, x] = look(probability, y, x, False) @ weights[y, x]
        probability = smooth
    return probability


def sample(height=9, width=7, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return image, torch.rand(2, classes, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4), (24,)])
def test_equals_slow_definition(dilations):
    image, probability = sample()
    found = pamr(image, probability, dilations=dilations, iterations=3, sigma=0.3)
    for b in range(2):
        expected = slow_pamr(image[b].numpy(), probability[b].numpy(), dilations, 3, 0.3)
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-12)


def test_padding_changes_nothing():
    image, probability = sample()
    wide = [torch.rand(2, 3, 14, 15, dtype=torch.float64) for _ in range(2)]
    for padded, inner in zip(wide, (image, probability), strict=True):
        padded[:, :, 2:11, 4:11] = inner
    valid = torch.zeros(2, 14, 15, dtype=torch.bool)
    valid[:, 2:11, 4:11] = True
    result = pamr(*wide, iterations=4, valid=valid)
    torch.testing.assert_close(result[:, :, 2:11, 4:11], pamr(image, probability, iterations=4))


def test_box_index_by_hand():
    valid = torch.tensor([[[False, False, False], [False, True, True]]])
    assert box_index(valid).tolist() == [[4, 4, 5, 4, 4, 5]]
    assert box_index(torch.zeros(1, 2, 2, dtype=torch.bool)).tolist() == [[0, 1, 2, 3]]


def test_edges_stop_the_smoothing_and_sums_are_kept():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1.0
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    score = (image[:, :1] * 0.6 + 0.2 + 0.3 * (noise - 0.5)).clamp(0, 1)
    probability = torch.cat([1 - score, score], 1)
    result = pamr(image, probability, dilations=(1, 2), iterations=10)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 8))
    assert ((result[0, 1] > 0.5) == (image[0, 0] > 0.5)).all()
    assert result[0, 1].std(0).mean() < score[0, 0].std(0).mean() / 2
    assert (result[0, 1, :, 4:].min() - result[0, 1, :, :4].max()) > 0.4


def test_constant_image_is_finite_and_half_precision_is_lifted():
    image, probability = torch.full((1, 3, 6, 6), 0.5), torch.rand(1, 2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = pamr(image.bfloat16(), probability.bfloat16(), dilations=(1,), iterations=1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result[0, :, 2, 2],
        (probability.bfloat16().float()[0, :, 1:4, 1:4].sum((1, 2)) - probability.bfloat16().float()[0, :, 2, 2]) / 8,
    )


def test_wrong_arguments_are_named():
    image, probability = sample()
    with pytest.raises(ValueError, match=r"Expected `sigma` > 0, but got 0\."):
        pamr(image, probability, sigma=0)
    with pytest.raises(ValueError, match=r"Expected `len\(dilations\)` > 0, but got 0\."):
        pamr(image, probability, dilations=())
    with pytest.raises(ValueError, match="Expected `probability` of shape"):
        pamr(image, probability[..., :5])
    with pytest.raises(ValueError, match="Expected `probability` to be finite"):
        pamr(image, probability * torch.nan)
    with pytest.raises(ValueError, match="Expected `image` to be finite"):
        pamr(image * torch.nan, probability)
