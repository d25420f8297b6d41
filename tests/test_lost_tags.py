import math

import pytest
import torch
from torch import Tensor

from dhr_lightning.evaluation.metrics import MaskStatistics, joint_counts


def lost_tags_case() -> tuple[Tensor, Tensor, Tensor]:
    """Two 1x20 images: bottle (2) on table (1) where the bottle vanished; a lone table, and a tag without truth."""
    truth = torch.zeros(2, 1, 20, dtype=torch.long)
    truth[0, 0, :10], truth[0, 0, 10:20] = 1, 2
    truth[1, 0, :10], truth[1, 0, 19] = 1, 255
    mask = torch.zeros(2, 1, 20, dtype=torch.long)
    mask[0] = 1
    mask[1, 0, 0], mask[1, 0, 19] = 1, 255
    tags = torch.tensor([[1, 1, 0], [1, 0, 1]])
    return mask, tags, truth


def test_lost_tags_by_hand():
    mask, tags, truth = lost_tags_case()
    statistics = MaskStatistics(4, offset=1, neighbours=[(2, 1)])
    statistics.update(mask, tags, truth)
    lost = statistics.compute()
    assert lost.pairs.tolist() == [0, 2, 1, 1]
    assert lost.empty.tolist() == [0, 0, 1, 1]
    assert lost.judged.tolist() == [0, 2, 1, 0]
    assert lost.vanished.tolist() == [0, 0, 1, 0]
    assert lost.judged_beside.tolist() == [0, 0, 1, 0]
    assert lost.vanished_beside.tolist() == [0, 0, 1, 0]
    assert lost.empty_share == 0.5
    assert lost.vanished_share == pytest.approx(1 / 3)
    assert lost.vanished_beside_share == 1


@pytest.mark.parametrize(("threshold", "vanished"), [(0.1, 0), (0.11, 1)])
def test_tag_vanishes_strictly_below_the_threshold(threshold, vanished):
    mask, tags, truth = lost_tags_case()
    statistics = MaskStatistics(4, offset=1, threshold=threshold)
    statistics.update(mask[1:], tags[1:], truth[1:])
    assert statistics.compute().vanished[1] == vanished


def test_pixels_of_the_class_elsewhere_do_not_rescue_it():
    truth = torch.tensor([[[1, 1, 0, 0]]])
    mask = torch.tensor([[[0, 0, 1, 1]]])
    statistics = MaskStatistics(2, offset=1)
    statistics.update(mask, torch.ones(1, 1), truth)
    assert statistics.compute().vanished.tolist() == [0, 1]
    assert statistics.compute().empty.tolist() == [0, 0]


def test_without_truth_only_empty_tags_are_counted():
    mask, tags, _ = lost_tags_case()
    statistics = MaskStatistics(4, offset=1)
    statistics.update(mask.to(torch.uint8), tags.bool())
    lost = statistics.compute()
    assert lost.empty.tolist() == [0, 0, 1, 1]
    assert lost.judged.sum() == 0
    assert math.isnan(lost.vanished_share)
    assert math.isnan(lost.vanished_beside_share)


def test_another_value_may_mean_ignore_also_without_truth():
    mask, tags, truth = lost_tags_case()
    mask[:, 0, 0] = truth[:, 0, 1] = 255
    for given in (truth, None):
        ours, theirs = MaskStatistics(4, offset=1), MaskStatistics(4, offset=1, ignore_index=-1)
        ours.update(mask.byte(), tags, given)
        other = None if given is None else given.masked_fill(given == 255, -1)
        theirs.update(mask.masked_fill(mask == 255, -1).short(), tags, other)
        for name, value in vars(ours.compute()).items():
            assert torch.equal(value, getattr(theirs.compute(), name)), name
    unlabelled = MaskStatistics(4, offset=1, ignore_index=300)
    unlabelled.update(mask.masked_fill(mask == 255, 0).byte(), tags)
    assert unlabelled.compute().judged.sum() == 0


def test_counts_are_integers():
    statistics = MaskStatistics(4, offset=1)
    statistics.update(*lost_tags_case())
    assert {value.dtype for value in vars(statistics.compute()).values()} == {torch.int64}


def test_images_accumulate_in_any_batching():
    mask, tags, truth = lost_tags_case()
    together, apart = (MaskStatistics(4, offset=1, neighbours=[(2, 1)]) for _ in range(2))
    together.update(mask, tags, truth)
    for index in (1, 0):
        apart.update(mask[index : index + 1], tags[index : index + 1], truth[index : index + 1])
    for name, value in vars(together.compute()).items():
        assert torch.equal(value, getattr(apart.compute(), name)), name


def test_result_that_was_handed_out_does_not_change():
    mask, tags, truth = lost_tags_case()
    statistics = MaskStatistics(4, offset=1)
    statistics.update(mask, tags, truth)
    lost = statistics.compute()
    statistics.update(mask, tags, truth)
    assert lost.pairs.tolist() == [0, 2, 1, 1]
    assert statistics.compute().pairs.tolist() == [0, 4, 2, 2]


def test_class_set_without_background():
    statistics = MaskStatistics(2, offset=0)
    statistics.update(torch.tensor([[[1, 1]]]), torch.tensor([[1, 1]]), torch.tensor([[[0, 1]]]))
    assert statistics.compute().vanished.tolist() == [1, 0]


def test_bad_statistics_input_is_refused():
    mask, tags, truth = lost_tags_case()
    statistics = MaskStatistics(4, offset=1)
    with pytest.raises(ValueError, match=r"`tags` \(2, 3\), but got \(2, 5, 5\), \(2, 2\)"):
        statistics.update(mask, tags[:, :2])
    with pytest.raises(ValueError, match=r"`prediction`.*\[4\]"):
        statistics.update(mask.masked_fill(mask == 1, 4), tags)
    with pytest.raises(ValueError, match=r"`target`.*\[9\]"):
        statistics.update(mask, tags, truth.masked_fill(truth == 1, 9))
    with pytest.raises(ValueError, match="one size"):
        statistics.update(mask, tags, truth[:, :, :5])
    with pytest.raises(ValueError, match=r"`mask` \(B, H, W\), but got \(5, 6\)"):
        statistics.update(torch.zeros(5, 6, dtype=torch.long), tags)
    for pair in ((0, 1), (1, 0), (4, 1), (1, 4)):
        with pytest.raises(ValueError, match=rf"`neighbours` in 1\.\.3, but got \({pair[0]}, {pair[1]}\)"):
            MaskStatistics(4, offset=1, neighbours=[pair])
    assert statistics.compute().pairs.sum() == 0, "a refused batch must not be counted"


def test_only_the_minor_class_of_a_pair_is_counted_as_beside():
    mask, tags, truth = lost_tags_case()
    statistics = MaskStatistics(4, offset=1, neighbours=[(1, 2)])
    statistics.update(mask, tags, truth)
    assert statistics.compute().judged_beside.tolist() == [0, 1, 0, 0]
    assert statistics.compute().vanished_beside.sum() == 0


@pytest.mark.parametrize(("percent", "area"), [(10, 10), (10, 110), (7, 100), (14, 50), (28, 25)])
def test_exactly_the_threshold_is_kept(percent, area):
    truth = torch.ones(1, 1, area, dtype=torch.long)
    mask = torch.zeros_like(truth)
    mask[..., : percent * area // 100] = 1
    statistics = MaskStatistics(2, offset=1, threshold=percent / 100)
    statistics.update(mask, torch.ones(1, 1), truth)
    assert statistics.compute().vanished[1] == 0
    mask[..., 0] = 0
    statistics.update(mask, torch.ones(1, 1), truth)
    assert statistics.compute().vanished[1] == 1


def test_counted_pixels_give_the_same_as_masks():
    mask, tags, truth = lost_tags_case()
    first, second = (MaskStatistics(4, offset=1, neighbours=[(2, 1)]) for _ in range(2))
    first.update(mask, tags, truth)
    second.add(joint_counts(mask, truth, num_classes=4), tags)
    for name, value in vars(first.compute()).items():
        assert torch.equal(value, getattr(second.compute(), name)), name
