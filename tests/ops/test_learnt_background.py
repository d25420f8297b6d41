import pytest
import torch

from dhr_lightning.ops.cam import background_score
from dhr_lightning.ops.learnt_background import (
    ConfidentCells,
    apply_background,
    fit_background,
    foreground_probability,
)


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
    cells = ConfidentCells(**options)
    for batch in order:
        cells.update(features[batch], cam[batch], [names[index] for index in batch])
    return cells


def test_confident_cells_are_those_above_and_below():
    features, cam, names = toy_images()
    valid = torch.rand(6, 6, 8, generator=torch.Generator().manual_seed(1)) < 0.8
    cells = ConfidentCells(low=0.2, high=0.6)
    cells.update(features, cam, names, valid=valid)
    best, rows = cam.amax(1), features.permute(0, 2, 3, 1)
    for found, chosen in zip(cells.result(), (best > 0.6, best < 0.2), strict=True):
        expected = rows[chosen & valid]
        assert len(found) == len(expected) > 0
        assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in expected.tolist()}


@pytest.mark.parametrize("limit", [7, 20, 1000])
def test_order_and_batches_of_the_images_do_not_matter(limit: int):
    expected = cells_of([[0, 1, 2, 3, 4, 5]], limit=limit).result()
    for order in ([[5], [3], [1], [0], [2], [4]], [[4, 1], [0, 3, 2], [5]]):
        found = cells_of(order, limit=limit).result()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(len(part) <= limit for part in expected)


def test_another_seed_draws_other_cells():
    assert not torch.equal(*(cells_of([[0, 1, 2, 3, 4, 5]], limit=7, seed=seed).result()[0] for seed in (0, 1)))


def test_the_sample_is_bounded_and_even_over_the_images():
    cells, count = ConfidentCells(limit=200), 60
    for index in range(count):
        features = torch.full((1, 1, 5, 8), float(index))
        cells.update(features, torch.full((1, 1, 5, 8), 0.9), [str(index)])
        assert sum(len(part) for part, _ in cells._kept["foreground"].parts) <= 2 * 200
    cells.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), ["background"])
    found = torch.bincount(cells.result()[0].long().flatten(), minlength=count)
    assert int(found.sum()) == 200
    assert float(found[:30].sum()) == pytest.approx(100, abs=25)
    assert int(found.max()) <= 10


def test_a_toy_that_can_be_told_apart_is():
    features, cam, _ = toy_images()
    weight, bias = fit_background(cells_of([[0, 1, 2], [3, 4, 5]]))
    probability = foreground_probability(features, weight, bias)
    best = cam.amax(1)
    assert (probability[best > 0.7] > 0.5).all()
    assert (probability[best < 0.15] < 0.5).all()
    assert int(weight.abs().argmax()) == 1


def test_probability_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, -1.0]]).view(1, 2, 1, 2)
    found = foreground_probability(features.half(), torch.tensor([2.0, -1.0]), torch.tensor(0.5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[[0.5, 1.5]]]).sigmoid())


def test_scores_by_hand():
    cam = torch.tensor([[0.8, 0.0, 0.2], [0.4, 0.0, 0.4]]).view(1, 2, 1, 3)
    scores = apply_background(cam, torch.tensor([[[0.9, 0.9, 0.25]]]))
    torch.testing.assert_close(scores[0, :, 0], torch.tensor([[0.9, 0, 0.125], [0.45, 0, 0.25]]))


def test_a_background_of_one_half_labels_what_the_probability_calls_background():
    generator = torch.Generator().manual_seed(0)
    cam, probability = torch.rand(2, 3, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)
    scores = apply_background(cam, probability)
    rest = background_score(scores, exponent=1.0)
    torch.testing.assert_close(rest[:, 0], 1 - probability)
    by_constant = torch.cat([torch.full_like(rest, 0.5), scores], 1).argmax(1)
    assert torch.equal(by_constant, torch.cat([rest, scores], 1).argmax(1))
    assert torch.equal(by_constant > 0, probability > 0.5)
    assert torch.equal(scores.argmax(1), cam.argmax(1))


@torch.inference_mode()
def test_it_is_fitted_where_autograd_is_off():
    weight, bias = fit_background(cells_of([[0, 1, 2, 3, 4, 5]]))
    assert (weight.shape, bias.shape) == ((4,), ())


def test_images_without_a_kind_say_what_to_do():
    cells = ConfidentCells()
    cells.update(torch.zeros(2, 3, 2, 2), torch.full((2, 1, 2, 2), 0.9), ["a", "b"])
    message = r"No cell of 2 images is background: none has a largest activation below 0.15. Raise `low`, or use a cons"
    with pytest.raises(ValueError, match=message):
        fit_background(cells)
    cells = ConfidentCells()
    cells.update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), ["a"])
    with pytest.raises(ValueError, match=r"1 images is foreground: none .* above 0.7. Lower `high`, or use"):
        cells.result()


def test_wrong_arguments_are_named():
    for low, high in ((0.0, 0.7), (0.8, 0.7), (0.15, 1.0)):
        with pytest.raises(ValueError, match=rf"Expected 0 < low <= high < 1, but got {low} and {high}"):
            ConfidentCells(low=low, high=high)
    with pytest.raises(ValueError, match="Expected `limit` > 0, but got 0"):
        ConfidentCells(limit=0)
    cells, features = ConfidentCells(), torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match=r"Expected `cam` of shape .* \(1, 1, 2, 2\), but got \(1, 1, 4, 2\)"):
        cells.update(features, torch.zeros(1, 1, 4, 2), ["a"])
    with pytest.raises(ValueError, match="Expected `images` to be 1 names, but got 2"):
        cells.update(features, torch.zeros(1, 1, 2, 2), ["a", "b"])
    with pytest.raises(ValueError, match="Expected `valid` of shape"):
        cells.update(features, torch.zeros(1, 1, 2, 2), ["a"], valid=torch.ones(1, 4, 4) > 0)
    with pytest.raises(ValueError, match="Expected `features` to be finite, but 12 of 12"):
        cells.update(features * torch.nan, torch.zeros(1, 1, 2, 2), ["a"])
    with pytest.raises(ValueError, match=r"Expected `weight` of shape .* \(3,\), but got \(2,\)"):
        foreground_probability(features, torch.zeros(2), torch.zeros(()))
    with pytest.raises(ValueError, match="Expected `probability` of shape"):
        apply_background(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 3))
