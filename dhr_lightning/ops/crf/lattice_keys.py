"""Where points lie in a permutohedral lattice: the simplex of every point, its weights, and numbers for its corners."""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_LARGEST_COORDINATE = 2**20  # beyond it float32 keeps less than three binary places of a remainder
_LARGEST_CODE = 2**62
_POINTS_IN_CACHE = 2**15


class Simplex(NamedTuple):
    """The simplex around each of N points in d dimensions.

    Attributes:
        cell: `(d, N)` int32, corner 0 in units of d + 1; its last coordinate follows, because coordinates sum to 0.
        order: `(d + 1, N)` int64, coordinates from the largest remainder to the smallest.
        weight: `(d + 1, N)` float32, barycentric weights of the corners, which sum to 1.
    """

    cell: Tensor
    order: Tensor
    weight: Tensor


class Codes(NamedTuple):
    """Numbers that tell the corners of simplexes apart.

    Attributes:
        code: `(d + 1, N)` int64 >= 0; equal for equal corners only.
        steps: `steps[remainder][axis]` is what leads from the code of a vertex to that of its neighbour.
        block: codes of vertices with remainder r lie in `[r * block, (r + 1) * block)`.
    """

    code: Tensor
    steps: list[list[int]]
    block: int


def locate(features: Tensor) -> Simplex:
    """Find the simplex around every point.

    Args:
        features: `(d, N)` float32, coordinates in standard deviations of the Gaussian.

    Returns:
        The simplexes. Every operation is rounded as in pydensecrf, so that points on a border fall on the same side.

    Raises:
        ValueError: if a coordinate is not finite or too large for float32 to place it.

    Source: Adams, Baek & Davis 2010, section 3.
    """
    # a processor is faster on blocks whose intermediate values stay in its cache
    blocks = ceil(features.shape[1] / _POINTS_IN_CACHE) if features.device.type == "cpu" else 1
    parts = [_locate_block(part) for part in features.chunk(blocks, 1)]
    return Simplex(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _locate_block(features: Tensor) -> Simplex:
    """Do the work of `locate`."""
    size = len(features) + 1
    elevated = _elevate(features)  # (d + 1, N)
    largest = float(elevated.abs().amax())
    if not largest < _LARGEST_COORDINATE:
        raise ValueError(
            f"Expected lattice coordinates below {_LARGEST_COORDINATE}, but got {largest:.1e}: "
            "the kernel is too narrow for the range of its features. Widen it."
        )
    cell = (elevated * float(np.float32(1.0 / size))).round_()
    remainder = elevated - cell * size
    rank = _rank(remainder)
    total = cell.sum(0).to(torch.int8)  # the nearest multiples need not sum to 0: move by whole cells until they do
    rank += total
    shift = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)
    rank += size * shift
    cell += shift
    inside = (elevated - cell * size) * float(np.float32(1.0 / size))
    axes = torch.arange(size, device=rank.device)[:, None].expand_as(rank)
    order = torch.empty(rank.shape, dtype=torch.int64, device=rank.device).scatter_(0, rank.long(), axes)
    ranked = inside.gather(0, order)  # (d + 1, N), largest first
    weight = torch.empty_like(ranked)
    weight[0] = ranked[-1] + (1.0 - ranked[0])
    weight[1:] = (ranked[:-1] - ranked[1:]).flip(0)
    return Simplex(cell[:-1].int(), order, weight)


def number_corners(simplex: Simplex, group: Tensor | None) -> Codes:
    """Give every corner a number from its coordinates, its remainder and the group of its point.

    Args:
        simplex: of N points.
        group: `(N,)` int64 >= 0; points of different groups never share a vertex.

    Raises:
        ValueError: if the numbers would not fit into 63 bits.
    """
    axes = len(simplex.cell)
    lowest = simplex.cell.amin(1) - 2  # a corner is up to 1 below corner 0, and its neighbour 1 below or above that
    extents = (simplex.cell.amax(1) - lowest + 2).tolist()
    strides = [1]
    for extent in extents:
        strides.append(strides[-1] * extent)
    block = strides[-1] * (1 if group is None else int(group.max()) + 1)
    if block * (axes + 1) > _LARGEST_CODE:
        raise ValueError(
            f"Expected a lattice of at most {_LARGEST_CODE:.1e} cells, but got {block * (axes + 1):.1e}: "
            "the kernel is too narrow for the range of its features. Widen it, or refine fewer images at once."
        )
    scale = torch.tensor([*strides[:axes], 0], device=simplex.cell.device)  # the last coordinate is not stored
    code = torch.empty(simplex.order.shape, dtype=torch.int64, device=scale.device)
    code[0] = ((simplex.cell - lowest[:, None]) * scale[:axes, None]).sum(0)
    if group is not None:
        code[0] += group * strides[-1]
    for remainder in range(1, axes + 1):
        # the next corner is one higher everywhere, minus d + 1 at the coordinate of the next rank
        torch.add(code[remainder - 1], block, out=code[remainder])
        code[remainder] -= scale[simplex.order[axes + 1 - remainder]]
    return Codes(code, _steps(strides[:axes], block), block)


def _steps(strides: list[int], block: int) -> list[list[int]]:
    """A neighbour is one lower everywhere and d + 1 higher at its axis; below remainder 0 comes d of the cell below."""
    axes = [*strides, 0]
    return [
        [stride + (len(strides) * block - sum(strides) if remainder == 0 else -block) for stride in axes]
        for remainder in range(len(axes))
    ]


def _elevate(features: Tensor) -> Tensor:
    """Map `(d, N)` onto the plane `(d + 1, N)` whose coordinates sum to 0, scaled for a blur of unit variance."""
    dims = len(features)
    deviation = float(np.float32(sqrt(2.0 / 3.0) * (dims + 1)))
    elevated = features.new_empty(dims + 1, features.shape[1])
    total = torch.zeros_like(features[0])
    for axis in range(dims, 0, -1):
        scaled = features[axis - 1] * float(np.float32(1.0 / sqrt((axis + 1) * axis) * deviation))
        torch.sub(total, scaled * axis, out=elevated[axis])
        total = total + scaled
    elevated[0] = total
    return elevated


def _rank(remainder: Tensor) -> Tensor:
    """Number of larger values in each column, int8; of equal values the first counts as the larger."""
    size = len(remainder)
    rank = torch.empty(remainder.shape, dtype=torch.int8, device=remainder.device)
    rank[:] = torch.arange(size, dtype=torch.int8, device=remainder.device)[:, None]
    for first in range(size):
        for second in range(first + 1, size):
            smaller = (remainder[first] < remainder[second]).view(torch.int8)
            rank[first] += smaller
            rank[second] -= smaller
    return rank
