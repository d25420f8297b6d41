"""Gaussian filtering of scattered points on a permutohedral lattice, in plain tensor operations."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from dhr_lightning.ops._checks import check_dims, check_shape, full_precision
from dhr_lightning.ops.crf.lattice_cache import LatticeCache
from dhr_lightning.ops.crf.lattice_keys import Codes, locate, number_corners

__all__ = ["Lattice", "LatticeCache", "build_lattice"]

_LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class Lattice:
    """A Gaussian filter over N points in d dimensions, with M occupied vertices; made by `build_lattice`.

    Attributes:
        corners: `(N, d + 1)` int32, vertices of the simplex around every point.
        weights: `(N, d + 1)` float32, what each of them gives to the point.
        members: `(N (d + 1),)` int32, the points around every vertex, vertex by vertex.
        shares: `(N (d + 1),)` float32, what each of them gives to the vertex.
        starts: `(M + 2,)` int32, where the members of a vertex start; the last vertex has none and is always 0.
        neighbours: `(d + 1, 2 M + 2)` int32, vertices before and after each one along every axis; M for none.
    """

    corners: Tensor
    weights: Tensor
    members: Tensor
    shares: Tensor
    starts: Tensor
    neighbours: Tensor

    @property
    def vertices(self) -> int:
        """Number of occupied vertices."""
        return len(self.starts) - 2

    def filter(self, values: Tensor) -> Tensor:
        """Sum the values of all points, weighted by a Gaussian of their distance.

        Args:
            values: `(N, C)` float, any finite range; computed in float32.

        Returns:
            `(N, C)` float32.

        Raises:
            ValueError: if there is not one row per point.

        Source: Adams, Baek & Davis 2010: splat, blur by 1/2-1-1/2 along every axis, slice.
        """
        check_dims("values", values, "N C")
        check_shape("values", values, (len(self.corners), *values.shape[1:2]), "N C")
        with full_precision(values):
            table = embedding_bag(
                self.members,
                values.float(),
                self.starts,
                mode="sum",
                per_sample_weights=self.shares,
                include_last_offset=True,
            )  # (M + 1, C)
            bags = torch.arange(0, self.neighbours.shape[1], 2, dtype=torch.int32, device=table.device)
            for pairs in self.neighbours:
                table.add_(embedding_bag(pairs, table, bags, mode="sum"), alpha=0.5)
            return embedding_bag(self.corners, table, mode="sum", per_sample_weights=self.weights)

    def normalize(self) -> "Lattice":
        """Return the filter D^-1/2 K D^-1/2, where D holds the row sums of this filter K.

        Source: Krähenbühl & Koltun, ICML 2013, section 3.
        """
        total = self.filter(torch.ones_like(self.weights[:, :1]))  # (N, 1)
        factor = (total + 1e-20).rsqrt()
        shares = self.shares * factor[:, 0].index_select(0, self.members)
        return replace(self, weights=self.weights * factor, shares=shares)


def build_lattice(features: Tensor, *, group: Tensor | None = None) -> Lattice:
    """Build the filter exp(-|f_i - f_j|^2 / 2) between points of the same group.

    Args:
        features: `(N, d)` float, N and d >= 1; coordinates in standard deviations of the Gaussian.
        group: `(N,)` int64 >= 0, such as the image of every pixel; default one group.

    Returns:
        The filter. It is the classic approximation, the same as in pydensecrf: blurs do not pass empty vertices.

    Raises:
        ValueError: if a shape does not fit, there is no point, or the kernel is too narrow for the range of a feature
            (more than about 1e5 deviations, or 2e3 in each of five dimensions), so that vertices cannot be numbered.

    Source: Adams, Baek & Davis 2010.
    Differs: vertices are found by sorting numbers instead of in a hash table, so that every step is a tensor operation.
    """
    check_dims("features", features, "N d")
    if group is not None:
        check_shape("group", group, features.shape[:1], "N")
    points, size = features.shape[0], features.shape[1] + 1
    if min(features.shape) == 0 or points * size > _LARGEST_INDEX:
        raise ValueError(
            f"Expected `features` with 1 to {_LARGEST_INDEX // size} points, but got {tuple(features.shape)}."
        )
    with full_precision(features):
        simplex = locate(features.float().t().contiguous())
        codes = number_corners(simplex, group)
        ordered, source = codes.code.t().flatten().sort(stable=True)  # (N (d + 1),)
        first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        starts = first.nonzero()[:, 0]  # (M,)
        vertex = first.cumsum(0, dtype=torch.int32).sub_(1)
        weights = simplex.weight.t().contiguous()  # (N, d + 1)
        corners = torch.empty_like(vertex).scatter_(0, source, vertex).view(points, size)
        point = torch.arange(points, dtype=torch.int32, device=starts.device)
        count = starts.new_full((2,), points * size)
        return Lattice(
            corners=corners,
            weights=weights / (1.0 + 2.0 ** (1 - size)),  # the gain of the blur
            members=point.repeat_interleave(size).index_select(0, source),
            shares=weights.flatten().index_select(0, source),
            starts=torch.cat([starts, count]).int(),
            neighbours=_neighbours(ordered.index_select(0, starts), codes),
        )


def _neighbours(vertices: Tensor, codes: Codes) -> Tensor:
    """Find the neighbours of every vertex `(M,)`, sorted codes, along every axis; `(d + 1, 2 M + 2)` int32."""
    count = len(vertices)
    size = len(codes.steps)
    steps = torch.tensor(codes.steps, device=vertices.device)  # (d + 1, d + 1): remainder, axis
    remainder = vertices.div(codes.block, rounding_mode="floor")
    index = torch.arange(count, dtype=torch.int32, device=vertices.device)
    pairs = torch.full((size, count + 1, 2), count, dtype=torch.int32, device=vertices.device)
    for axis in range(size):
        wanted = vertices + steps[:, axis].index_select(0, remainder)
        place = torch.searchsorted(vertices, wanted, out_int32=True).clamp_(max=count - 1)
        found = vertices.index_select(0, place) == wanted
        place = torch.where(found, place, count)
        pairs[axis, :count, 0] = place
        # whoever has a neighbour before it is the neighbour after that one; the spare row takes all others
        pairs[axis, :, 1].index_copy_(0, place.long(), index)
        pairs[axis, count] = count
    return pairs.flatten(1)
