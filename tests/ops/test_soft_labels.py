from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.ops.soft_labels import class_shares


def plain(mask: list[list[int]], classes: int, grid: tuple[int, int]) -> tuple[list, list]:
    """Exact shares of one mask, pixel by pixel."""

    def overlap(pixel: int, cell: int, length: int, cells: int) -> Fraction:
        low, high = Fraction(cell * length, cells), Fraction((cell + 1) * length, cells)
        return max(min(high, Fraction(pixel + 1)) - max(low, Fraction(pixel)), Fraction(0))

    height, width = len(mask), len(mask[0])
    shares = [[[Fraction(0)] * grid[1] for _ in range(grid[0])] for _ in range(classes)]
    weight = [[0.0] * grid[1] for _ in range(grid[0])]
    for row in range(grid[0]):
        for column in range(grid[1]):
            area = [Fraction(0)] * classes
            for y in range(height):
                for x in range(width):
                    if mask[y][x] != 255:
                        part = overlap(y, row, height, grid[0]) * overlap(x, column, width, grid[1])
                        area[mask[y][x]] += part
            labelled = sum(area)
            weight[row][column] = float(labelled * grid[0] * grid[1] / (height * width))
            for value in range(classes):
                shares[value][row][column] = float(area[value] / labelled) if labelled else 0.0
    return shares, weight


def test_a_border_within_a_pixel_divides_it():
    mask = torch.tensor([[[0, 1, 2]]])
    shares, weight = class_shares(mask, 3, grid=(1, 2))
    torch.testing.assert_close(shares[0, :, 0], torch.tensor([[2 / 3, 0], [1 / 3, 1 / 3], [0, 2 / 3]]))
    assert weight.tolist() == [[[1.0, 1.0]]]


def test_pixels_without_label_have_no_share():
    mask = torch.tensor([[[0, 255, 255, 255], [1, 1, 255, 255]]])
    shares, weight = class_shares(mask, 2, grid=(1, 2))
    torch.testing.assert_close(shares[0, :, 0], torch.tensor([[1 / 3, 0], [2 / 3, 0]]))
    assert weight.tolist() == [[[0.75, 0.0]]]
    shares, weight = class_shares(torch.tensor([[[0, 9]]]), 1, grid=(1, 1), ignore_index=9)
    assert (shares.item(), weight.item()) == (1.0, 0.5)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shares_are_exact_areas(size: tuple[int, int], grid: tuple[int, int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, *size), generator=generator)]
    shares, weight = class_shares(mask, 3, grid=grid)
    assert shares.shape == (2, 3, *grid)
    for image in range(2):
        expected, area = plain(mask[image].tolist(), 3, grid)
        torch.testing.assert_close(shares[image], torch.tensor(expected), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weight[image], torch.tensor(area), atol=1e-6, rtol=1e-5)


def test_shares_of_a_large_mask_sum_to_one_and_their_areas_to_the_mask():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 21, (2, 375, 500), generator=generator)
    mask[0, :40], mask[1, 100:300, 7:333] = 255, 255
    shares, weight = class_shares(mask, 21, grid=(42, 56))
    labelled = weight > 0
    torch.testing.assert_close(shares.sum(1)[labelled], torch.ones(int(labelled.sum())))
    assert (shares.sum(1)[~labelled] == 0).all()
    area = (shares * weight[:, None]).double().sum((2, 3)) * 375 * 500 / (42 * 56)
    expected = torch.stack([(mask == value).sum((1, 2)) for value in range(21)], 1)
    torch.testing.assert_close(area, expected.double(), atol=0.1, rtol=1e-5)
    assert (weight[0, :4] == 0).all()


def test_a_batch_equals_its_images_and_a_mask_alone_is_a_batch_of_one():
    mask = torch.randint(0, 4, (3, 11, 13), generator=torch.Generator().manual_seed(0))
    shares, weight = class_shares(mask, 4, grid=(5, 6))
    for image in range(3):
        alone, part = class_shares(mask[image], 4, grid=(5, 6))
        assert torch.equal(alone, shares[image : image + 1])
        assert torch.equal(part, weight[image : image + 1])


def test_classes_and_mirrors_are_carried_over():
    mask = torch.randint(0, 3, (1, 7, 10), generator=torch.Generator().manual_seed(0))
    shares, _ = class_shares(mask, 3, grid=(3, 4))
    torch.testing.assert_close(class_shares(2 - mask, 3, grid=(3, 4))[0], shares.flip(1))
    torch.testing.assert_close(class_shares(mask.flip(2), 3, grid=(3, 4))[0], shares.flip(3))
    torch.testing.assert_close(class_shares(mask.mT, 3, grid=(4, 3))[0], shares.mT)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"Expected `mask` of shape \(B, H, W\), but got \(1, 1, 2, 2\)"):
        class_shares(torch.zeros(1, 1, 2, 2, dtype=torch.long), 2, grid=(1, 1))
    for wrong in (2, 254, -1):
        with pytest.raises(ValueError, match=rf"Expected `mask` values in \[0, 2\) or 255, but got {wrong}"):
            class_shares(torch.tensor([[[0, wrong]]]), 2, grid=(1, 1))
    with pytest.raises(ValueError, match=r"Expected `grid\[1\]` > 0, but got 0"):
        class_shares(torch.zeros(1, 2, 2, dtype=torch.long), 2, grid=(1, 0))
