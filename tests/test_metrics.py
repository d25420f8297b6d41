import math

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from dhr_lightning.evaluation.metrics import ConfusionMatrix, confusion_matrix, joint_counts, scores


def random_masks(seed: int, classes: list[int], num_classes: int = 7) -> tuple[Tensor, Tensor]:
    """Masks with `classes` only; a quarter of the prediction is wrong and a tenth of the truth is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.tensor(classes)
    shape = (3, 16, 20)
    target = pick[torch.randint(len(classes), shape, generator=generator)]
    wrong = pick[torch.randint(len(classes), shape, generator=generator)]
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.25, wrong, target)
    target = target.masked_fill(torch.rand(shape, generator=generator) < 0.1, 255)
    return prediction, target


def test_hand_computed_case():
    target = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255], [0, 1, 2, 255]])
    answer = torch.tensor([[0, 0, 1, 1], [1, 255, 2, 2], [0, 0, 2, 0]])
    matrix = confusion_matrix(answer, target, num_classes=4)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[3, 1, 0, 0, 0], [1, 2, 0, 0, 1], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]]
    result = scores(matrix)
    assert result.iou.tolist()[:3] == pytest.approx([3 / 5, 2 / 5, 1.0])
    assert result.fpr.tolist()[:3] == pytest.approx([1 / 5, 1 / 5, 0.0])
    assert result.fnr.tolist()[:3] == pytest.approx([1 / 5, 2 / 5, 0.0])
    assert math.isnan(result.iou[3])
    assert result.miou == pytest.approx((3 / 5 + 2 / 5 + 1) / 3)
    assert result.mfpr == pytest.approx((1 / 5 + 1 / 5) / 3)
    assert result.mfnr == pytest.approx((1 / 5 + 2 / 5) / 3)
    assert result.pixel_accuracy == pytest.approx(7 / 10)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [[0, 1, 2, 3, 4, 5, 6], [0, 2, 5], [3]])
def test_iou_equals_torchmetrics_for_present_classes(seed, classes):
    prediction, target = random_masks(seed, classes)
    ours = scores(confusion_matrix(prediction, target, num_classes=7))
    theirs = MulticlassJaccardIndex(num_classes=7, average="none", ignore_index=255)(prediction, target)
    present = ~ours.iou.isnan()
    assert present.nonzero().flatten().tolist() == classes
    torch.testing.assert_close(ours.iou[present], theirs[present].double(), atol=1e-6, rtol=0)
    assert ours.miou == pytest.approx(float(theirs[present].mean()), abs=1e-6)
    if len(classes) == 7:
        macro = MulticlassJaccardIndex(num_classes=7, average="macro", ignore_index=255)(prediction, target)
        assert ours.miou == pytest.approx(float(macro), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_iou_fpr_and_fnr_sum_to_one_also_with_missing_answers(seed):
    prediction, target = random_masks(seed, [0, 1, 2, 4])
    prediction[:, :5] = 255
    result = scores(confusion_matrix(prediction, target, num_classes=7))
    total = result.iou + result.fpr + result.fnr
    present = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(total[present], torch.ones(4, dtype=torch.float64))
    assert total[[3, 5, 6]].isnan().all()
    assert result.miou + result.mfpr + result.mfnr == pytest.approx(1.0)


def test_no_answer_is_a_miss_and_never_a_false_alarm():
    target = torch.tensor([0, 0, 1, 1])
    result = scores(confusion_matrix(torch.tensor([0, 0, 255, 255]), target, num_classes=2))
    assert result.iou.tolist() == [1.0, 0.0]
    assert result.fpr.tolist() == [0.0, 0.0]
    assert result.fnr.tolist() == [0.0, 1.0]
    background = scores(confusion_matrix(torch.tensor([0, 0, 0, 0]), target, num_classes=2))
    assert background.fpr.tolist() == [0.5, 0.0]


def test_class_that_is_only_predicted_counts_as_zero():
    result = scores(confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 0]), num_classes=3))
    assert result.iou[2] == 0
    assert math.isnan(result.iou[1])
    assert result.miou == pytest.approx(0.25)


def test_predictions_on_unlabelled_pixels_do_not_count():
    first = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 255]), num_classes=3)
    second = confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 255]), num_classes=3)
    assert torch.equal(first, second)
    assert first.sum() == 1


def test_permuting_classes_permutes_the_scores():
    prediction, target = random_masks(0, [0, 1, 2, 3, 4, 5, 6])
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    lookup = torch.full((256,), 255)
    lookup[:7] = order
    plain = scores(confusion_matrix(prediction, target, num_classes=7))
    permuted = scores(confusion_matrix(lookup[prediction], lookup[target], num_classes=7))
    assert torch.equal(permuted.iou[order], plain.iou)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_every_integer_type_gives_the_same_counts(dtype):
    prediction, target = random_masks(1, [0, 1, 6])
    expected = confusion_matrix(prediction, target, num_classes=7)
    assert torch.equal(confusion_matrix(prediction.to(dtype), target.to(dtype), num_classes=7), expected)


def test_counts_beyond_int32_and_float_precision_stay_exact():
    matrix = torch.tensor([[2**40 + 1, 0], [0, 1]])
    result = scores(matrix)
    assert result.iou.tolist() == [1.0, 1.0]
    assert scores(torch.tensor([[2**40, 1], [0, 1]])).iou[0] < 1


def test_empty_split_has_no_score():
    result = scores(confusion_matrix(torch.zeros(0).long(), torch.zeros(0).long(), num_classes=3))
    assert math.isnan(result.miou)
    assert math.isnan(result.pixel_accuracy)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([7], [0], r"`prediction`.*\[7\] in 1 pixels"),
        ([0], [7], r"`target`.*\[7\] in 1 pixels"),
        ([-1], [0], r"`prediction`.*\[-1\]"),
        ([0, 0], [0], "one size"),
        ([0.0], [0], "integer class values, but got torch.float32"),
        ([0], [0.0], "integer class values, but got torch.float32"),
        ([True], [0], "integer class values, but got torch.bool"),
        ([0], [0j], "integer class values, but got torch.complex64"),
    ],
)
def test_bad_masks_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor(target), num_classes=7)


def test_bad_arguments_are_refused():
    mask = torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"outside 0\.\.6, but got 0"):
        confusion_matrix(mask, mask, num_classes=7, ignore_index=0)
    with pytest.raises(ValueError, match=r"outside 0\.\.6, but got 6"):
        confusion_matrix(mask, mask, num_classes=7, ignore_index=6)
    for shape in [(3, 5), (4, 3), (3,)]:
        with pytest.raises(ValueError, match=r"\(C, C \+ 1\)"):
            scores(torch.zeros(shape))


def test_negative_ignore_index():
    matrix = confusion_matrix(torch.tensor([-1, 1, 1]), torch.tensor([0, 1, -1]), num_classes=2, ignore_index=-1)
    assert matrix.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_the_value_after_the_last_class_may_mean_ignore():
    prediction, target = random_masks(0, [0, 1, 2])
    prediction[:, :5] = 255
    expected = confusion_matrix(prediction, target, num_classes=7)
    prediction, target = (mask.masked_fill(mask == 255, 7) for mask in (prediction, target))
    assert torch.equal(confusion_matrix(prediction, target, num_classes=7, ignore_index=7), expected)


def test_a_metric_without_images_has_the_shape_of_its_counts_and_no_scores():
    metric = ConfusionMatrix(7)
    assert metric.matrix.shape == (7, 8)
    assert metric.matrix.sum() == 0
    found = metric.scores()
    for values in (found.iou, found.fpr, found.fnr, found.boundary_iou):
        assert values.shape == (7,)
        assert values.dtype == torch.float64
        assert values.isnan().all()
    assert math.isnan(found.pixel_accuracy)
    without = scores(metric.matrix).boundary_iou
    assert without.shape == (7,)
    assert without.isnan().all()


def test_metric_sums_batches_and_resets():
    metric = ConfusionMatrix(7)
    batches = [random_masks(seed, [0, 1, 2, 3]) for seed in range(3)]
    for prediction, target in batches:
        metric.update(prediction, target)
    together = [torch.cat(masks) for masks in zip(*batches, strict=True)]
    total = metric.compute()
    assert torch.equal(total, confusion_matrix(*together, num_classes=7))
    metric.reset()
    metric.update(*batches[1])
    assert torch.equal(metric.compute(), confusion_matrix(*batches[1], num_classes=7))


def test_metric_sums_over_ranks():
    metric, other = ConfusionMatrix(7, boundary_ratio=0.1), ConfusionMatrix(7, boundary_ratio=0.1)
    metric.update(*random_masks(0, [0, 1]))
    other.update(*random_masks(1, [1, 3]))
    expected, near = metric.matrix + other.matrix, metric.boundary + other.boundary
    theirs = {tuple(state.shape): state for state in (other.matrix, other.boundary)}
    metric.sync(dist_sync_fn=lambda mine, group: [mine, theirs[tuple(mine.shape)]], distributed_available=lambda: True)
    assert torch.equal(metric.matrix, expected)
    assert torch.equal(metric.boundary, near)
    assert metric.matrix.dtype == metric.boundary.dtype == torch.int64


def test_metric_started_in_inference_mode_goes_on_outside():
    metric = ConfusionMatrix(7)
    with torch.inference_mode():
        metric.reset()
        metric.update(*random_masks(0, [0, 1]))
    metric.update(*random_masks(0, [0, 1]))
    assert torch.equal(metric.compute(), 2 * confusion_matrix(*random_masks(0, [0, 1]), num_classes=7))


def test_metric_uses_its_ignore_index():
    metric = ConfusionMatrix(2, ignore_index=9)
    metric.update(torch.tensor([0, 9, 1]), torch.tensor([0, 1, 9]))
    assert metric.compute().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_joint_counts_keep_images_apart_and_what_has_no_truth():
    target = torch.tensor([[0, 0, 255], [1, 1, 0]])
    answer = torch.tensor([[0, 1, 1], [255, 1, 0]])
    joint = joint_counts(answer, target, num_classes=2)
    assert joint.tolist() == [[[1, 1, 0], [0, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 1], [0, 0, 0]]]
    assert torch.equal(joint.sum(0)[:2], confusion_matrix(answer, target, num_classes=2))
    metric = ConfusionMatrix(2)
    metric.update(answer, target, joint)
    assert torch.equal(metric.compute(), confusion_matrix(answer, target, num_classes=2))


def test_unknown_value_is_refused_also_where_nothing_is_scored():
    with pytest.raises(ValueError, match=r"`prediction`.*\[7\]"):
        confusion_matrix(torch.tensor([0, 7]), torch.tensor([0, 255]), num_classes=7)


def test_scores_of_the_metric():
    metric = ConfusionMatrix(7)
    metric.update(*random_masks(0, [0, 1]))
    found, expected = metric.scores(), scores(metric.compute())
    assert found.miou == expected.miou
    assert math.isnan(found.mboundary_iou)
    with pytest.raises(ValueError, match=r"\(3, C\) = \(3, 7\), but got \(3, 6\)"):
        scores(metric.compute(), torch.zeros(3, 6))
