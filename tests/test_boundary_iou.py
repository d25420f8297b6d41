import math

import numpy as np
import pytest
import torch

from dhr_lightning.evaluation.metrics import ConfusionMatrix, boundary_counts, scores
from tests.boundary_reference import blocks, eroded_band


def pair(seed: int, shape: tuple[int, int] = (30, 40)) -> tuple[np.ndarray, np.ndarray]:
    """A truth with an ignored stripe and a prediction that is shifted and partly without an answer."""
    truth = blocks(shape, (3, 3), seed)
    prediction = np.roll(truth, 2, axis=1)
    prediction[:4, :6] = 255
    truth[10:13] = 255
    return prediction, truth


def slow_boundary_iou(pairs: list[tuple[np.ndarray, np.ndarray]], value: int, ratio: float) -> float:
    """Boundary IoU of one class over a split, by its definition: sets of pixels of binary masks."""
    both = either = 0
    for prediction, truth in pairs:
        distance = max(1, round(ratio * math.hypot(*truth.shape)))
        scored = truth != 255
        bands = [
            (mask == value) & scored & eroded_band(np.where(scored & (mask == value), 1, 0), distance)
            for mask in (truth, prediction)
        ]
        both += int((bands[0] & bands[1]).sum())
        either += int((bands[0] | bands[1]).sum())
    return both / either if either else math.nan


def test_the_metric_adds_the_counts_of_its_batches():
    batches = [[torch.from_numpy(mask)[None] for mask in pair(seed)] for seed in range(3)]
    metric = ConfusionMatrix(5, boundary_ratio=0.03)
    for prediction, truth in batches:
        metric.update(prediction, truth)
    total = sum(boundary_counts(*batch, num_classes=5, ratio=0.03) for batch in batches)
    assert torch.equal(metric.boundary, total)
    assert total.min() >= 0
    assert total[0].sum() > 0


def test_another_value_may_mean_ignore():
    prediction, truth = (torch.from_numpy(mask)[None] for mask in pair(0))
    expected = boundary_counts(prediction, truth, num_classes=5)
    prediction, truth = (mask.masked_fill(mask == 255, 5) for mask in (prediction, truth))
    assert torch.equal(boundary_counts(prediction, truth, num_classes=5, ignore_index=5), expected)


@pytest.mark.parametrize("ratio", [0.02, 0.06])
def test_every_class_agrees_with_the_definition(ratio):
    pairs = [pair(seed) for seed in range(3)]
    metric = ConfusionMatrix(5, boundary_ratio=ratio)
    for prediction, truth in pairs:
        metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None])
    found = metric.scores()
    expected = [slow_boundary_iou(pairs, value, ratio) for value in range(5)]
    assert math.isnan(expected[4])
    assert found.boundary_iou.tolist() == pytest.approx(expected, nan_ok=True)
    assert found.mboundary_iou == pytest.approx(np.nanmean(expected))


def test_right_masks_score_one_next_to_ignored_pixels_too():
    prediction, truth = pair(0)
    prediction = np.where(truth == 255, 3, truth)
    masks = torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]
    found = scores(torch.eye(4), boundary_counts(*masks, num_classes=4))
    assert set(found.boundary_iou[~found.boundary_iou.isnan()].tolist()) == {1.0}


def test_hand_computed_case():
    truth = torch.zeros(1, 20, 20, dtype=torch.long)
    truth[0, 5:15, 5:15] = 1
    prediction = torch.zeros_like(truth)
    prediction[0, 5:15, 6:16] = 1
    both, true, predicted = boundary_counts(prediction, truth, num_classes=2, ratio=0.03)[:, 1].tolist()
    assert true == predicted == 100 - 64  # distance 1: a frame of one pixel
    assert both == 9 + 9


def test_an_image_larger_than_another_has_a_wider_band():
    small = boundary_counts(*2 * [torch.zeros(1, 40, 40).long()], num_classes=1)
    large = boundary_counts(*2 * [torch.zeros(1, 200, 200).long()], num_classes=1)
    assert small[0, 0] == 40**2 - 38**2
    assert large[0, 0] == 200**2 - 188**2


def test_no_answer_belongs_to_no_band():
    truth = torch.zeros(1, 10, 10, dtype=torch.long)
    counts = boundary_counts(torch.full_like(truth, 255), truth, num_classes=1)
    assert counts[:, 0].tolist() == [0, 36, 0]


def test_bad_input_is_refused():
    mask = torch.zeros(1, 4, 4).long()
    with pytest.raises(ValueError, match=r"`ratio` > 0, but got 0"):
        boundary_counts(mask, mask, num_classes=2, ratio=0)
    with pytest.raises(ValueError, match="one size"):
        boundary_counts(mask, mask[:, :3], num_classes=2)
