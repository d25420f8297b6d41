import re

import pytest
import torch

from dhr_lightning.ops.smoothing import smooth_maps


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    return maps, torch.rand(2, 5, 7, generator=generator) < 0.6


def plain(maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One mean, cell by cell."""
    result = torch.zeros_like(maps)
    images, _, height, width = maps.shape
    for image in range(images):
        for row in range(height):
            for column in range(width):
                near = [
                    maps[image, :, r, c]
                    for r in range(max(0, row - 1), min(height, row + 2))
                    for c in range(max(0, column - 1), min(width, column + 2))
                    if valid[image, r, c]
                ]
                if near:
                    result[image, :, row, column] = torch.stack(near).mean(0)
    return result


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("limited", [False, True])
def test_every_cell_is_the_mean_of_the_valid_cells_around_it(times: int, limited: bool):
    maps, valid = random_case()
    valid[0, :3, :3] = False  # a cell without any valid neighbour
    expected = maps
    for _ in range(times):
        expected = plain(expected, valid if limited else torch.ones_like(valid))
    torch.testing.assert_close(smooth_maps(maps, times, valid=valid if limited else None), expected)
    assert bool((expected[0, :, 1, 1] == 0).all()) == limited


def test_by_hand():
    maps = torch.tensor([9.0, 0.0, 3.0, 5.0]).view(1, 1, 1, 4)
    valid = torch.tensor([[[True, True, True, False]]])
    assert smooth_maps(maps, 1, valid=valid).flatten().tolist() == pytest.approx([4.5, 4, 1.5, 3])
    assert smooth_maps(maps, 1).flatten().tolist() == pytest.approx([4.5, 4, 8 / 3, 4])
    assert torch.equal(smooth_maps(maps), smooth_maps(maps, 1))


def test_no_mean_leaves_the_valid_cells_as_they_are():
    maps, valid = random_case()
    assert torch.equal(smooth_maps(maps, 0), maps)
    assert torch.equal(smooth_maps(maps, 0, valid=valid), maps * valid[:, None])


@pytest.mark.parametrize("times", [1, 5])
def test_constant_maps_stay_up_to_the_border_of_the_image(times: int):
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[1, :, 5:] = False
    found = smooth_maps(torch.full((2, 3, 6, 8), 0.7), times, valid=valid)
    torch.testing.assert_close(found[:, :, valid[1]], torch.full((2, 3, 30), 0.7))
    torch.testing.assert_close(smooth_maps(torch.full((2, 3, 6, 8), 0.7), times), torch.full((2, 3, 6, 8), 0.7))


@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_what_lies_in_the_padding_counts_for_nothing(value: float):
    maps, valid = random_case()
    filled = torch.where(valid[:, None], maps, value)
    assert torch.equal(smooth_maps(filled, 3, valid=valid), smooth_maps(maps, 3, valid=valid))


def test_padding_beside_an_image_changes_nothing_of_it():
    maps, valid = random_case()[0], torch.zeros(2, 5, 7, dtype=torch.bool)
    valid[:, :4, :5] = True
    torch.testing.assert_close(smooth_maps(maps, 3, valid=valid)[:, :, :4, :5], smooth_maps(maps[:, :, :4, :5], 3))


def test_mirrored_maps_have_mirrored_means_and_nothing_larger():
    maps, valid = random_case()
    found = smooth_maps(maps, 2, valid=valid)
    torch.testing.assert_close(smooth_maps(maps.flip(-1), 2, valid=valid.flip(-1)), found.flip(-1))
    assert float(found.max()) <= float(maps.max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_means_are_computed_in_float32_at_least(dtype: torch.dtype):
    maps = random_case()[0].to(dtype)
    found = smooth_maps(maps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, smooth_maps(maps.double()).float())


def test_gradients_are_right():
    maps, valid = random_case()
    maps = maps[:, :1, :3, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smooth_maps(x, 2, valid=valid[:, :3, :4]), (maps,))


@pytest.mark.parametrize(
    ("shape", "times", "valid", "message"),
    [
        ((3, 4, 5), 1, None, "Expected `maps` of shape (B, C, h, w), but got (3, 4, 5)."),
        ((1, 3, 4, 5), -1, None, "Expected `times` >= 0, but got -1."),
        ((2, 3, 4, 5), 1, (2, 5, 4), "Expected `valid` of shape (B, h, w) = (2, 4, 5), but got (2, 5, 4)."),
    ],
)
def test_what_cannot_be_smoothed_is_named(
    shape: tuple[int, ...], times: int, valid: tuple[int, ...] | None, message: str
):
    inside = None if valid is None else torch.ones(valid, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape(message)):
        smooth_maps(torch.ones(shape), times, valid=inside)
