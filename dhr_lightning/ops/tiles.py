"""Large images in overlapping tiles, whose results are blended so that no border shows."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_positive, check_range


def tile_starts(length: int, *, side: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover a length evenly, the first at 0 and the last up to the end.

    Args:
        length: pixels, > 0.
        side: of a tile in pixels; a shorter length is one tile.
        overlap: pixels that neighbours share at least, in [0, side).
    """
    check_positive("length", length)
    check_range("overlap", overlap, 0, side - 1)
    if length <= side:
        return [0]
    steps = -(-(length - side) // (side - overlap))
    return [round(step * (length - side) / steps) for step in range(steps + 1)]


def blend_weights(size: tuple[int, int], *, overlap: int) -> Tensor:
    """Weight `(h, w)` float32 of every pixel of a tile: 1 inside, falling towards its borders, > 0.

    Args:
        size: rows and columns of the tile.
        overlap: pixels over which it falls.
    """

    def ramp(length: int) -> Tensor:
        places = torch.arange(length, dtype=torch.float32)
        return (torch.minimum(places, length - 1 - places) + 1).clamp(max=overlap + 1) / (overlap + 1)

    return ramp(size[0])[:, None] * ramp(size[1])[None]


def predict_tiles(
    size: tuple[int, int], predict: Callable[[slice, slice], Tensor], *, side: int, overlap: int
) -> Iterator[tuple[slice, Tensor]]:
    """Blend the probabilities of tiles, band by band, so that memory does not grow with the height of the image.

    Args:
        size: rows and columns of the image.
        predict: `(rows, columns)` of a tile -> probabilities `(C, h, w)` there.
        side: of a tile in pixels.
        overlap: pixels that neighbours share at least.

    Yields:
        rows, and their probabilities `(C, rows, columns)` float32, a view that the next step overwrites; every row of
        the image once, in order. What overlaps is the mean by `blend_weights`, so that a constant prediction stays what
        it is.
    """
    tops, lefts = (tile_starts(length, side=side, overlap=overlap) for length in size)
    height = min(side, size[0])
    total, weight = torch.zeros(0), torch.zeros(height, size[1])  # of the rows from the top of the current tiles on
    for index, top in enumerate(tops):
        for left in lefts:
            right = min(left + side, size[1])
            tile = predict(slice(top, top + height), slice(left, right)).float().cpu()
            if not total.numel():
                total = torch.zeros(len(tile), height, size[1])
            share = blend_weights((height, right - left), overlap=overlap)
            total[:, :, left:right] += tile * share
            weight[:, left:right] += share
        done = (tops[index + 1] if index + 1 < len(tops) else size[0]) - top
        yield slice(top, top + done), total[:, :done].div_(weight[:done])
        for buffer in (total, weight):  # in place: bands of wide images with many classes take a gigabyte
            kept = buffer[..., done:, :].clone()
            buffer.zero_()
            buffer[..., : kept.shape[-2], :] = kept
