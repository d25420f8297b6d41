import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.mars import (
    centroid_sizes,
    debiased_centroids,
    foreground_mask,
    foreground_similarity,
    image_centroids,
    reject_biased,
)
from dhr_lightning.ops.pooling import cell_labels
from dhr_lightning.ops.refine import Refiner


def toy():
    """8 x 8 cells: background, train on the left, rails below it that the mask calls train too."""
    directions = torch.eye(3)
    cells = torch.zeros(8, 8, dtype=torch.long)
    cells[2:4, 1:5] = 1
    cells[4:6, 1:5] = 2
    noise = 0.05 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    uss = directions[cells].permute(2, 0, 1) + noise
    uss[0] += 0.5 * (cells == 2)  # rails resemble the background
    mask = torch.where(cells > 0, 7, 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return uss[None], mask[None], cells


KEYS = torch.tensor([[0, 7, -1]])
CLASSES = ImageClasses(KEYS, 1)


def test_the_biased_object_is_rejected():
    uss, mask, cells = toy()
    centroids, used = image_centroids(uss, mask, CLASSES)
    assert used.tolist() == [[[True, True], [True, True], [False, False]]]
    classes = KEYS[..., None].expand_as(used)[used]
    debiased, found = debiased_centroids(centroids[used], classes, num_classes=9)
    assert found.nonzero()[:, 0].tolist() == [7]
    similarity = foreground_similarity(uss, debiased, KEYS)
    foreground = foreground_mask(torch.zeros(1, 3, 32, 32).byte(), similarity)
    result = reject_biased(mask, foreground, value=254)
    inside = cells.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    assert (result[inside == 1] == 7).float().mean() > 0.85
    assert (result[inside == 2] == 254).float().mean() > 0.85
    assert (result[inside == 0] == 0).all()


def test_debiased_centroids_equal_all_pairs_of_distances():
    generator = torch.Generator().manual_seed(1)
    centroids = torch.randn(60, 5, generator=generator) * 3
    classes = torch.randint(0, 4, (60,), generator=generator)
    for alpha in (0.1, 0.4, 1.0):
        debiased, found = debiased_centroids(centroids, classes, num_classes=6, alpha=alpha)
        unit = (centroids / centroids.norm(dim=1, keepdim=True)).double().numpy()
        background = unit[(classes == 0).numpy()]
        assert found.tolist() == [False, True, True, True, False, False]
        for c in (1, 2, 3):
            mine = unit[(classes == c).numpy()]
            distance = [np.mean([(1 - v @ g) / 2 for g in background]) for v in mine]
            kept = np.argsort(distance)[::-1][: math.ceil(len(mine) * alpha - 1e-9)]
            expected = mine[kept].mean(0)
            np.testing.assert_allclose(debiased[c].numpy(), expected / np.linalg.norm(expected), atol=1e-5)
        assert debiased[~found].abs().sum() == 0


def test_kept_share_is_rounded_up_but_not_by_float_noise():
    centroids = torch.cat([torch.eye(2)[:1], torch.stack([torch.linspace(0, 1, 100), torch.ones(100)], 1)])
    classes = torch.tensor([0] + [1] * 100)
    debiased, _ = debiased_centroids(centroids, classes, num_classes=2, alpha=0.07)  # 0.07 * 100 = 7.000000000000001
    expected = functional.normalize(functional.normalize(centroids[1:8]).mean(0), dim=0)
    torch.testing.assert_close(debiased[1], expected)


def test_cluster_counts_follow_class_and_batch_composition_has_no_effect():
    uss, mask, _ = toy()
    centroids, used = image_centroids(uss, mask, CLASSES, k_fg=1, k_bg=3)
    assert used.sum(2).tolist() == [[3, 1, 0]]
    other, other_mask = torch.randn(1, 3, 8, 8), torch.full((1, 32, 32), 3)
    classes = ImageClasses(torch.tensor([[0, 7, -1], [0, 3, 5]]), 1)
    both, both_used = image_centroids(torch.cat([uss, other]), torch.cat([mask, other_mask]), classes, k_fg=1, k_bg=3)
    torch.testing.assert_close(both[:1], centroids)
    assert both_used[1].sum(1).tolist() == [0, 1, 0]


def test_padding_pixels_do_not_count():
    uss, mask, _ = toy()
    wide_uss, wide_mask = functional.pad(uss, (0, 4), value=3.0), functional.pad(mask, (0, 16), value=7)
    valid = functional.pad(torch.ones_like(mask), (0, 16)).bool()
    alone, _ = image_centroids(uss, mask, CLASSES)
    padded, _ = image_centroids(wide_uss, wide_mask, ImageClasses(KEYS, 1, valid))
    torch.testing.assert_close(alone, padded)


def test_similarity_by_hand():
    uss = torch.tensor([[3.0, 0.0, -1.0], [4.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    debiased = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = foreground_similarity(uss, debiased, torch.tensor([[0, 1, 2, -1]]))
    torch.testing.assert_close(found, torch.tensor([[[0.8, 0.0, 0.0]]]))
    found = foreground_similarity(uss, debiased, torch.tensor([[0, 1]]))
    torch.testing.assert_close(found, torch.tensor([[[0.6, 0.0, 0.0]]]))


def test_reject_by_hand():
    mask = torch.tensor([[[0, 5, 5, 255]]])
    foreground = torch.tensor([[[False, False, True, False]]])
    assert reject_biased(mask, foreground, value=-1).tolist() == [[[0, -1, 5, 255]]]


def test_foreground_mask_uses_the_refinement():
    similarity = torch.tensor([[[0.9, 0.2]]])
    seen = {}

    def flip(image, score, present, *, valid=None):
        seen.update(shape=score.shape, total=score.sum(1), present=present)
        return score.flip(1)

    image = torch.zeros(1, 3, 1, 2).byte()
    assert foreground_mask(image, similarity).tolist() == [[[True, False]]]
    assert foreground_mask(image, similarity, refine=flip).tolist() == [[[False, True]]]
    assert seen["present"].tolist() == [[True, True]]
    torch.testing.assert_close(seen["total"], torch.ones(1, 1, 2))


def test_the_threshold_is_where_foreground_and_background_are_equal():
    image, similarity = torch.zeros(1, 3, 1, 5).byte(), torch.tensor([[[0.0, 0.1, 0.3, 0.8, 1.0]]])
    scores = []

    def keep(image, score, present, *, valid=None):
        scores.append(score[0, 1, 0].tolist())
        return score

    assert foreground_mask(image, similarity, threshold=0.2).tolist() == [[[False, False, True, True, True]]]
    foreground_mask(image, similarity, threshold=0.2, refine=keep)
    foreground_mask(image, similarity, refine=keep)
    assert scores[0] == pytest.approx([0.0, 0.25, 0.5625, 0.875, 1.0])
    assert scores[1] == similarity[0, 0].tolist()  # bit by bit at the default
    with pytest.raises(ValueError, match=r"Expected `threshold` in \(0, 1\), but got 1\.0\."):
        foreground_mask(image, similarity, threshold=1.0)


@pytest.mark.parametrize("refine", [None, Refiner("pamr", dilations=(1,), pamr_iterations=2)], ids=["none", "pamr"])
def test_padding_does_not_change_the_foreground(refine):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 16, 24), generator=generator).byte()
    similarity = torch.rand(2, 4, 6, generator=generator)
    wide = functional.pad(image, (0, 8, 0, 4), value=200)
    valid = torch.zeros(2, 20, 32, dtype=torch.bool)
    valid[:, :16, :24] = True
    alone = foreground_mask(image, similarity, refine=refine)
    padded = foreground_mask(wide, functional.pad(similarity, (0, 2, 0, 1), value=1.0), refine=refine, valid=valid)
    assert 0.2 < alone.float().mean() < 0.8
    assert torch.equal(padded[:, :16, :24], alone)


def test_a_pixel_that_is_as_much_background_as_foreground_is_background():
    image = torch.zeros(1, 3, 1, 3).byte()
    assert foreground_mask(image, torch.tensor([[[0.5, 0.4999, 0.5001]]])).tolist() == [[[False, False, True]]]


def test_class_sets_without_background_are_refused():
    uss, mask, _ = toy()
    with pytest.raises(ValueError, match="MARS needs a background class, but `offset` is 0"):
        image_centroids(uss, mask, ImageClasses(KEYS, 0))
    with pytest.raises(ValueError, match="MARS needs a background class, but none of the 2 centroids has class 0"):
        debiased_centroids(torch.ones(2, 3), torch.tensor([1, 2]), num_classes=3)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"Expected `alpha` > 0, but got 0\.0\."):
        debiased_centroids(torch.ones(1, 2), torch.zeros(1).long(), num_classes=2, alpha=0.0)
    with pytest.raises(ValueError, match=r"Expected `classes` in \[0, 1\], but got 5"):
        debiased_centroids(torch.ones(2, 2), torch.tensor([0, 5]), num_classes=2)
    with pytest.raises(ValueError, match="Expected `k_fg` > 0, but got 0"):
        image_centroids(*toy()[:2], CLASSES, k_fg=0)


def test_sizes_count_every_member_cell_once():
    uss, mask = toy()[:2]
    centroids, used = image_centroids(uss, mask, CLASSES)
    sizes = centroid_sizes(uss, mask, CLASSES, centroids, used)
    member = cell_labels(mask, CLASSES, grid=(uss.shape[2], uss.shape[3])) > 0
    torch.testing.assert_close(sizes.sum(2), member.sum(2).to(sizes))
    assert (sizes[~used] == 0).all()


def test_a_small_far_part_cannot_stand_for_the_class_when_cells_count():
    angles = torch.tensor([0.0, 1.0, 1.05, 1.5, 1.5])  # background, body twice, a stripe twice
    centroids = torch.stack([angles.cos(), angles.sin()], dim=1)
    classes = torch.tensor([0, 1, 1, 1, 1])
    by_count, _ = debiased_centroids(centroids, classes, num_classes=2, alpha=0.5)
    sizes = torch.tensor([50.0, 40.0, 40.0, 2.0, 2.0])
    by_cells, _ = debiased_centroids(centroids, classes, num_classes=2, alpha=0.5, sizes=sizes)
    torch.testing.assert_close(by_count[1], centroids[3])
    expected = functional.normalize(2 * centroids[3] + 2 * centroids[4] + 40 * centroids[2], dim=0)
    torch.testing.assert_close(by_cells[1], expected)
    assert by_cells[1] @ centroids[1] > by_count[1] @ centroids[1]
