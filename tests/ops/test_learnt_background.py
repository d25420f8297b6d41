import pytest
import torch

from dhr_lightning.ops.cam import background_score
from dhr_lightning.ops.learnt_background import (
    ConfidentCells,
    apply_background,
    fit_background,
    foreground_probability,
)
from dhr_lightning.ops.logistic import balanced_logistic

KEYS = torch.tensor([[0, 1]])  # both classes in every image


def toy_images(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Features `(B, 4, 6, 8)` whose second channel tells objects apart, and maps of two classes, unsure in between."""
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(count, 2, 6, 8, generator=generator)
    cam[:, 1, :, :6] *= 0.3
    cam[:, 0, :, 4:] *= 0.1
    features = torch.randn(count, 4, 6, 8, generator=generator)
    features[:, 1] = 6 * (cam.amax(1) - 0.45)
    return features, cam, [f"image_{index}" for index in range(count)]


def cells_of(order: list[list[int]], **options: float) -> ConfidentCells:
    features, cam, names = toy_images()
    cells = ConfidentCells(2, **options)
    for batch in order:
        cells.update(features[batch], cam[batch], KEYS.expand(len(batch), 2), [names[index] for index in batch])
    return cells


def rows_of(cells: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in cells.tolist())


def test_confident_cells_are_those_above_of_the_class_that_is_highest_and_those_below():
    features, cam, names = toy_images()
    valid = torch.rand(6, 6, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    keys = torch.tensor([[2, 0]] * 3 + [[0, -1]] * 3)
    cells = ConfidentCells(3, low=0.2, high=0.6)
    cells.update(features, cam.masked_fill(keys[..., None, None] < 0, 0), keys, names, valid=valid)
    best, first = cam.masked_fill(keys[..., None, None] < 0, 0).max(1)
    rows, tag = features.permute(0, 2, 3, 1), keys.gather(1, first.flatten(1)).view_as(first)
    foreground, background = cells.result()
    for index, found in enumerate(foreground):
        assert rows_of(found) == rows_of(rows[(best > 0.6) & valid & (tag == index)])
    assert len(foreground[1]) == 0 < min(len(foreground[0]), len(foreground[2]))
    below = (best < 0.2) & valid
    assert rows_of(background) == rows_of(torch.cat([rows[below], rows[:3][below[:3]]]))  # of class 0, and of class 2


def test_a_rare_class_has_as_much_room_as_the_others():
    """Class 1 is in one image of twenty."""
    cells = ConfidentCells(2, limit=60)
    for index in range(20):
        features = torch.full((1, 1, 5, 16), float(index))
        cam = torch.full((1, 1, 5, 16), 0.9)
        cam[..., 8:] = 0
        cells.update(features, cam, torch.tensor([[int(index == 7)]]), [str(index)])
    foreground, background = cells.result()
    assert [len(found) for found in foreground] == [30, 30]
    assert set(foreground[1].flatten().tolist()) == {7.0}
    assert int((background == 7).sum()) == 30
    assert len(background) == 60


@pytest.mark.parametrize("limit", [7, 20, 1000])
def test_order_and_batches_of_the_images_do_not_matter(limit: int):
    expected = cells_of([[0, 1, 2, 3, 4, 5]], limit=limit).result()
    for order in ([[5], [3], [1], [0], [2], [4]], [[4, 1], [0, 3, 2], [5]]):
        found = cells_of(order, limit=limit).result()
        assert all(torch.equal(one, other) for one, other in zip(found[0], expected[0], strict=True))
        assert torch.equal(found[1], expected[1])
    assert all(len(part) <= limit // 2 for part in expected[0])
    assert len(expected[1]) <= limit


def test_another_seed_draws_other_cells():
    assert not torch.equal(*(cells_of([[0, 1, 2, 3, 4, 5]], limit=7, seed=seed).result()[1] for seed in (0, 1)))


def test_the_sample_is_bounded_and_even_over_the_images():
    cells, count, only = ConfidentCells(1, limit=200), 60, torch.zeros(1, 1, dtype=torch.int64)
    for index in range(count):
        features = torch.full((1, 1, 5, 8), float(index))
        cells.update(features, torch.full((1, 1, 5, 8), 0.9), only, [str(index)])
        assert sum(len(part) for part, _ in cells._foreground[0].parts) <= 2 * 200
    cells.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), only, ["background"])
    found = torch.bincount(cells.result()[0][0].long().flatten(), minlength=count)
    assert int(found.sum()) == 200
    assert float(found[:30].sum()) == pytest.approx(100, abs=25)
    assert int(found.max()) <= 10


def test_a_toy_that_can_be_told_apart_is():
    features, cam, _ = toy_images()
    weight, bias = fit_background(cells_of([[0, 1, 2], [3, 4, 5]]))
    probability = foreground_probability(features, weight, bias)
    for index, maps in enumerate((cam[:, 0], cam[:, 1])):
        assert (probability[:, index][(maps > 0.7) & (maps == cam.amax(1))] > 0.5).all()
        assert (probability[:, index][cam.amax(1) < 0.15] < 0.5).all()
        assert int(weight[index].abs().argmax()) == 1


def test_every_class_is_told_from_the_background_by_its_own_cells():
    """The first feature tells class 0 from the background, the second class 1; nothing tells class 2, which is never
    sure: it is told as the cells of both."""
    cells = ConfidentCells(3)
    cam = torch.tensor([0.9, 0.9, 0.0, 0.0]).view(1, 1, 1, 4)
    for index in range(2):
        features = torch.zeros(1, 2, 1, 4)
        features[0, index, 0, :2] = 1
        cells.update(features, cam, torch.tensor([[index]]), [str(index)])
    weight, bias = fit_background(cells)
    foreground, background = cells.result()
    for index, own in enumerate((foreground[0], foreground[1], torch.cat(foreground[:2]))):
        expected = balanced_logistic(own, background)
        torch.testing.assert_close(weight[index], expected[0])
        torch.testing.assert_close(bias[index], expected[1])
    assert weight[0, 0] > 1 > 0.1 > float(weight[0, 1].abs())
    assert weight[1, 1] > 1 > 0.1 > float(weight[1, 0].abs())


def test_probability_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, -1.0]]).view(1, 2, 1, 2)
    weight, bias = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([0.5, -1.0])
    found = foreground_probability(features.half(), weight, bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[[[0.5, 1.5]], [[5.0, -4.0]]]]).sigmoid())


def test_scores_by_hand():
    cam = torch.tensor([[0.8, 0.0, 0.2], [0.4, 0.0, 0.4]]).view(1, 2, 1, 3)
    scores = apply_background(cam, torch.tensor([[0.9, 0.9, 0.5], [0.2, 0.9, 0.25]]).view(1, 2, 1, 3))
    torch.testing.assert_close(scores[0, :, 0], torch.tensor([[0.9, 0, 0.25], [0.1, 0, 0.25]]))


def test_the_background_is_what_the_largest_score_leaves():
    generator = torch.Generator().manual_seed(0)
    cam, probability = torch.rand(2, 3, 4, 5, generator=generator), torch.rand(2, 3, 4, 5, generator=generator)
    scores = apply_background(cam, probability)
    rest = background_score(scores, exponent=1.0)
    torch.testing.assert_close(rest[:, 0], 1 - scores.amax(1))
    highest = cam.argmax(1, keepdim=True)
    torch.testing.assert_close(scores.gather(1, highest), probability.gather(1, highest))
    same = apply_background(cam, probability[:, :1].expand_as(cam))
    assert torch.equal(same.argmax(1), cam.argmax(1))


@torch.inference_mode()
def test_it_is_fitted_where_autograd_is_off():
    weight, bias = fit_background(cells_of([[0, 1, 2, 3, 4, 5]]))
    assert (weight.shape, bias.shape) == ((2, 4), (2,))


def test_images_without_a_kind_say_what_to_do():
    cells = ConfidentCells(1)
    cells.update(torch.zeros(2, 3, 2, 2), torch.full((2, 1, 2, 2), 0.9), torch.zeros(2, 1).long(), ["a", "b"])
    message = r"No cell of 2 images is background: none has a largest activation below 0.15. Raise `low`, or use a cons"
    with pytest.raises(ValueError, match=message):
        fit_background(cells)
    cells = ConfidentCells(1)
    cells.update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1).long(), ["a"])
    with pytest.raises(ValueError, match=r"1 images is foreground: none .* above 0.7. Lower `high`, or use"):
        cells.result()


def test_wrong_arguments_are_named():
    for low, high in ((0.0, 0.7), (0.8, 0.7), (0.15, 1.0)):
        with pytest.raises(ValueError, match=rf"Expected 0 < low <= high < 1, but got {low} and {high}"):
            ConfidentCells(1, low=low, high=high)
    with pytest.raises(ValueError, match="Expected `limit` > 0, but got 0"):
        ConfidentCells(1, limit=0)
    with pytest.raises(ValueError, match="Expected `tags` > 0, but got 0"):
        ConfidentCells(0)
    cells, features, keys = ConfidentCells(1), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1).long()
    with pytest.raises(ValueError, match=r"Expected `cam` of shape .* \(1, 1, 2, 2\), but got \(1, 1, 4, 2\)"):
        cells.update(features, torch.zeros(1, 1, 4, 2), keys, ["a"])
    with pytest.raises(ValueError, match=r"Expected `keys` of shape .* \(1, 1\), but got \(1, 2\)"):
        cells.update(features, torch.zeros(1, 1, 2, 2), keys.expand(1, 2), ["a"])
    with pytest.raises(ValueError, match="Expected `images` to be 1 names, but got 2"):
        cells.update(features, torch.zeros(1, 1, 2, 2), keys, ["a", "b"])
    with pytest.raises(ValueError, match="Expected `valid` of shape"):
        cells.update(features, torch.zeros(1, 1, 2, 2), keys, ["a"], valid=torch.ones(1, 4, 4) > 0)
    with pytest.raises(ValueError, match="Expected `features` to be finite, but 12 of 12"):
        cells.update(features * torch.nan, torch.zeros(1, 1, 2, 2), keys, ["a"])
    with pytest.raises(ValueError, match=r"Expected `weight` of shape .* \(1, 3\), but got \(1, 2\)"):
        foreground_probability(features, torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"Expected `bias` of shape .* \(1,\), but got \(2,\)"):
        foreground_probability(features, torch.zeros(1, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="Expected `probability` of shape"):
        apply_background(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2))
