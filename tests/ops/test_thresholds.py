import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dhr_lightning.ops.cam import background_score
from dhr_lightning.ops.thresholds import exponent_of, foreground_histogram, otsu_threshold


def plain_otsu(counts: np.ndarray) -> float:
    """Largest variance between the parts, tried edge by edge over the single samples."""
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    values = np.repeat(centres, counts)
    best, edges = -1.0, []
    for step in range(1, len(counts)):
        edge = step / len(counts)
        low, high = values[values < edge], values[values > edge]
        between = 0.0
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2 / len(values) ** 2
        if between > best * (1 + 1e-9) + 1e-15:
            best, edges = between, [edge]
        elif between >= best * (1 - 1e-9):
            edges.append(edge)
    return float(np.mean(edges))


@given(arrays(np.int64, 16, elements=st.integers(0, 30)).filter(lambda counts: (counts > 0).sum() > 1))
def test_otsu_equals_a_search_over_all_edges(counts):
    assert float(otsu_threshold(torch.from_numpy(counts))) == pytest.approx(plain_otsu(counts))


def test_two_heaps_are_split_in_the_middle_of_the_gap():
    counts = torch.zeros(2, 10)
    counts[0, 1], counts[0, 7] = 50, 50
    counts[1, 0], counts[1, 1] = 9, 1
    assert otsu_threshold(counts).tolist() == pytest.approx([0.45, 0.1])


@pytest.mark.parametrize("bins", [2, 7, 10, 256])
def test_the_middle_of_a_gap_is_exact_for_any_number_of_bins(bins):
    counts = torch.zeros(bins, dtype=torch.int64)
    counts[0], counts[-1] = 3, 5
    found = otsu_threshold(counts)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(0.5, rel=1e-14)


def test_thresholds_of_a_batch_are_those_of_its_histograms():
    counts = torch.randint(0, 40, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    counts[0] *= torch.tensor([1, 50, 1000])[:, None]
    together = otsu_threshold(counts)
    assert together.tolist() == [[otsu_threshold(one).item() for one in row] for row in counts]


def test_a_histogram_without_pixels_is_split_in_half():
    assert otsu_threshold(torch.zeros(3, 256)).tolist() == pytest.approx([0.5] * 3)


def test_histogram_counts_the_strongest_activation_of_every_valid_pixel():
    cam = torch.tensor([[[[0.0, 0.3], [1.0, 0.6]], [[0.2, 0.1], [0.4, 0.6]]]])  # (1, 2, 2, 2)
    assert foreground_histogram(cam, bins=5).tolist() == [[0, 2, 0, 1, 1]]
    valid = torch.tensor([[[True, True], [False, True]]])
    assert foreground_histogram(cam, valid=valid, bins=5).tolist() == [[0, 2, 0, 1, 0]]
    assert foreground_histogram(cam, bins=2).tolist() == [[2, 2]]


def test_activations_at_the_ends_are_counted_in_the_outer_bins():
    cam = torch.tensor([[[[0.0, 1.0, -0.4, 1.4]]], [[[0.1, 0.2, 0.8, 0.9]]]])
    assert foreground_histogram(cam, bins=4).tolist() == [[2, 0, 0, 2], [2, 0, 0, 2]]


def test_histograms_of_a_batch_are_those_of_its_images():
    cam = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    together = foreground_histogram(cam, valid=valid)
    alone = [foreground_histogram(cam[i : i + 1], valid=valid[i : i + 1])[0] for i in range(3)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together.sum(1), valid.flatten(1).sum(1))


@pytest.mark.parametrize("threshold", [0.05, 0.25, 0.382, 0.5, 0.9])
def test_background_and_class_meet_at_the_threshold(threshold):
    power = exponent_of(torch.tensor([threshold], dtype=torch.float64))
    for activation, wins in ((threshold - 0.01, True), (threshold + 0.01, False)):
        score = background_score(torch.full((1, 1, 1, 1), activation, dtype=torch.float64), exponent=power)
        assert (score.item() > activation) == wins


def test_exponents_known_by_hand():
    golden = (3 - 5**0.5) / 2
    assert exponent_of(torch.tensor([0.5, golden], dtype=torch.float64)).tolist() == pytest.approx([1, 2])


def test_bad_arguments_are_named():
    for wrong in (0.0, 1.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"threshold.*\[{wrong:.1f}"):
            exponent_of(torch.tensor([0.5, wrong], dtype=torch.float64))
    with pytest.raises(ValueError, match="finite"):
        foreground_histogram(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="valid"):
        foreground_histogram(torch.zeros(1, 1, 2, 2), valid=torch.ones(1, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`cam`"):
        foreground_histogram(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="`bins - 1`"):
        foreground_histogram(torch.zeros(1, 1, 2, 2), bins=1)
    with pytest.raises(ValueError, match="`bins - 1`"):
        otsu_threshold(torch.ones(1))
    with pytest.raises(ValueError, match="exponent"):
        background_score(torch.zeros(2, 1, 2, 2), exponent=torch.tensor([1.0, 0.0]))
