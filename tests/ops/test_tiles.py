"""Tiles cover every pixel, blend without seams, and come in bands."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dhr_lightning.ops.tiles import blend_weights, predict_tiles, tile_starts


@given(length=st.integers(1, 400), side=st.integers(2, 90), share=st.floats(0, 0.9))
def test_tiles_cover_the_length_and_overlap_at_least_as_asked(length: int, side: int, share: float):
    overlap = min(int(share * side), side - 1)
    starts = tile_starts(length, side=side, overlap=overlap)
    ends = [min(start + side, length) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == length
    assert all(end - start == min(side, length) for start, end in zip(starts, ends, strict=True))
    assert all(end - start >= overlap for end, start in zip(ends, starts[1:], strict=False))


def plain(size: tuple[int, int], predict, *, side: int, overlap: int) -> torch.Tensor:
    """The whole canvas at once, tile by tile."""
    total, weight = torch.zeros(3, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for top in tile_starts(size[0], side=side, overlap=overlap):
        for left in tile_starts(size[1], side=side, overlap=overlap):
            rows, columns = slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))
            share = blend_weights((rows.stop - rows.start, columns.stop - columns.start), overlap=overlap).double()
            total[:, rows, columns] += predict(rows, columns) * share
            weight[rows, columns] += share
    return total / weight


@pytest.mark.parametrize("size", [(97, 131), (40, 131), (97, 30), (20, 20)])
@pytest.mark.parametrize("overlap", [0, 7])
def test_bands_are_the_whole_canvas_in_order(size: tuple[int, int], overlap: int):
    def predict(rows: slice, columns: slice) -> torch.Tensor:
        shape = (3, rows.stop - rows.start, columns.stop - columns.start)
        return torch.rand(shape, generator=torch.Generator().manual_seed(rows.start * 1000 + columns.start))

    bands = [(rows, values.clone()) for rows, values in predict_tiles(size, predict, side=40, overlap=overlap)]
    assert [rows.start for rows, _ in bands] == [0, *(rows.stop for rows, _ in bands[:-1])]
    assert bands[-1][0].stop == size[0]
    found = torch.cat([values for _, values in bands], dim=1)
    assert torch.allclose(found.double(), plain(size, predict, side=40, overlap=overlap), atol=1e-6)


def test_a_prediction_that_depends_on_the_pixel_alone_has_no_seam():
    truth = torch.rand(2, 150, 90, generator=torch.Generator().manual_seed(0))
    bands = predict_tiles((150, 90), lambda rows, columns: truth[:, rows, columns], side=50, overlap=16)
    assert torch.allclose(torch.cat([values.clone() for _, values in bands], 1), truth, atol=1e-6)


def test_a_step_between_tiles_is_blended():
    bands = predict_tiles(
        (10, 70), lambda rows, columns: torch.full((1, 10, 40), float(columns.start > 0)), side=40, overlap=10
    )
    row = torch.cat([values.clone() for _, values in bands], 1)[0, 0]
    assert (row.diff() >= 0).all()
    assert row.diff().max() < 0.15
    assert row[:30].eq(0).all()
    assert row[40:].eq(1).all()
