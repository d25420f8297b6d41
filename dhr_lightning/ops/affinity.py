"""Affinities between nearby pixels, and random walks that spread scores along them."""

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import (
    as_float,
    check_device,
    check_dims,
    check_finite,
    check_positive,
    check_range,
    check_shape,
    check_unit,
    full_precision,
)
from dhr_lightning.ops._markov import apply_steps, change_matrix

_Offset = tuple[int, int]


def neighbour_offsets(radius: int) -> list[_Offset]:
    """List the neighbours closer than `radius`, one of each opposite pair.

    Args:
        radius: in pixels, >= 1. Radius 5 has 34 pairs per pixel, radius 10 has 152, radius 1 none.

    Returns:
        P offsets `(dy, dx)` with dy >= 0 and dy² + dx² < radius², in ascending order.

    Raises:
        ValueError: if `radius` is less than 1.

    Source: PSA (arXiv:1803.10464) and IRNet (arXiv:1904.05044), the pairs of their code in another order.
    """
    check_positive("radius", radius)
    square = [(dy, dx) for dy in range(radius) for dx in range(1 - radius, radius)]
    return [(dy, dx) for dy, dx in square if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius]


def neighbour_values(maps: Tensor, *, radius: int, fill: float) -> Tensor:
    """Values of the neighbours of every pixel.

    Args:
        maps: `(B, H, W)` of any type.
        radius: see `neighbour_offsets`.
        fill: value of neighbours outside the map.

    Returns:
        `(B, P, H, W)` of the same type.

    Raises:
        ValueError: if `maps` has another shape, or `radius` is less than 1.
    """
    check_dims("maps", maps, "B H W")
    padded = _pad(maps, radius, fill)
    return _stack([_look(padded, radius, offset) for offset in neighbour_offsets(radius)], maps)


def path_affinity(boundary: Tensor, *, radius: int = 5) -> Tensor:
    """Affinity of pixels that no boundary separates: 1 minus the highest boundary on the straight path between them.

    Args:
        boundary: `(B, 1, H, W)` or `(B, H, W)` float in [0, 1], probability of a boundary. Set it to 1 outside the
            image, and nothing passes there.
        radius: see `neighbour_offsets`.

    Returns:
        `(B, P, H, W)` in [0, 1], between each pixel and its neighbour at each offset; 0 where that lies outside the
        map. Differentiable.

    Raises:
        ValueError: if `boundary` has another shape or values outside [0, 1], or `radius` is less than 1.

    Source: IRNet (arXiv:1904.05044). A path holds all pixels of the bounding rectangle of its two ends, ends included,
        closer than 1 to the line. The code pads the map by boundary 1 at the left, right and bottom and drops the
        padding from the matrix: no pair of pixels is lost, and none leaves the map.
    """
    offsets = neighbour_offsets(radius)
    boundary = _boundary_map(boundary)
    with full_precision(boundary):
        boundary = as_float(boundary)
        padded = _pad(boundary, radius, 1.0)
        highest = [reduce(torch.maximum, (_look(padded, radius, cell) for cell in _path(end))) for end in offsets]
        return _stack([1.0 - value for value in highest], boundary)


def feature_affinity(features: Tensor, *, radius: int = 5) -> Tensor:
    """Affinity of pixels with similar features: exp(-mean over D of |f_i - f_j|).

    Args:
        features: `(B, D, H, W)` float, finite.
        radius: see `neighbour_offsets`.

    Returns:
        `(B, P, H, W)` in [0, 1], between each pixel and its neighbour at each offset; 0 where that lies outside the
        map. Differentiable.

    Raises:
        ValueError: if `features` has another shape or values that are not finite, or `radius` is less than 1.

    Source: PSA (arXiv:1803.10464) and its code, which takes the mean over D where the paper has the sum.
    Differs: the code drops pairs whose upper pixel is closer than `radius` - 1 to the left, right or bottom border.
    """
    check_dims("features", features, "B D H W")
    check_finite("features", features)
    offsets = neighbour_offsets(radius)
    with full_precision(features):
        features = as_float(features)
        padded = _pad(features, radius, torch.inf)
        distance = [(_look(padded, radius, offset) - features).abs().mean(1) for offset in offsets]
        return _stack([(-value).exp() for value in distance], features[:, 0])


@torch.no_grad()
def separation(affinity: Tensor, *, radius: int = 5, valid: Tensor | None = None) -> Tensor:
    """How far a pixel stands apart from its neighbours: 1 minus the mean affinity of its pairs, to look at.

    Args:
        affinity: `(B, P, H, W)` float in [0, 1], see `path_affinity` and `feature_affinity`.
        radius: that of the affinities, >= 2.
        valid: `(B, H, W)` bool, pixels that take part.

    Returns:
        `(B, H, W)` in [0, 1]; 0 where not valid, or without any neighbour.

    Raises:
        ValueError: if a shape does not fit.
    """
    offsets = neighbour_offsets(radius)
    batch, _, height, width = affinity.shape
    check_shape("affinity", affinity, (batch, len(offsets), height, width), "B P H W")
    inside = _both_valid(affinity, valid, radius)
    apart = torch.where(inside, 1.0 - affinity, 0.0)
    total, pairs = apart.sum(1), inside.sum(1).to(apart.dtype)
    for number, (dy, dx) in enumerate(offsets):  # each pair counts for its other end, too
        rows, columns = slice(dy, height), slice(max(dx, 0), width + min(dx, 0))
        start = (slice(None), slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0)))
        total[:, rows, columns] += apart[:, number][start]
        pairs[:, rows, columns] += inside[:, number][start]
    return total / pairs.clamp_min(1.0)


def random_walk(
    score: Tensor,
    affinity: Tensor,
    *,
    radius: int = 5,
    beta: float = 10.0,
    steps: int = 256,
    valid: Tensor | None = None,
    boundary: Tensor | None = None,
) -> Tensor:
    """Spread scores along affinities: replace each pixel by the weighted average around it, `steps` times.

    One step is y_j <- sum_i y_i A_ij / d_j with A = affinity^beta (1 on the diagonal) and d_j = sum_i A_ij. Results
    are averages of the input: constants stay. Not the plain sum over the pixels is kept, but the sum of d_j y_j.
    The published choices are:

        IRNet  path_affinity     beta 10  steps 256 (exp_times 8)  boundary given
        PSA    feature_affinity  beta 8   steps 256 (logt 8)
        SEAM   feature_affinity  beta 8   steps 64 (logt 6)

    Args:
        score: `(B, K, H, W)` float, finite, any range.
        affinity: `(B, P, H, W)` float in [0, 1], see `path_affinity` and `feature_affinity`.
        radius: that of the affinities.
        beta: exponent of the affinities, >= 0 (β). Larger walks stay closer to home.
        steps: number of steps, >= 0.
        valid: `(B, H, W)` bool, pixels that take part.
        boundary: `(B, 1, H, W)` or `(B, H, W)` in [0, 1]; the walk starts from score * (1 - boundary).

    Returns:
        `(B, K, H, W)` float, without gradients; 0 where not valid.

    Raises:
        ValueError: if a shape, device or range does not fit.

    Source: PSA (arXiv:1803.10464) and IRNet (arXiv:1904.05044) and their code.
    Differs: the code squares a dense matrix. Here a sparse one is applied to the scores, and fewer times, see
        `power_coefficients`: the same result, with memory for the neighbours only. Affinity 0 stays 0 for `beta` = 0,
        so that pairs beyond the radius stay apart.
    """
    offsets = neighbour_offsets(radius)
    check_range("beta", beta, 0.0, float("inf"))
    check_range("steps", steps, 0, float("inf"))
    score = _start(score, valid, boundary)
    batch, classes, height, width = score.shape
    check_shape("affinity", affinity, (batch, len(offsets), height, width), "B P H W")
    check_device("affinity", affinity, "score", score)
    check_unit("affinity", affinity, hint="Logits need a sigmoid.")
    with full_precision(score):
        weights = affinity.to(score.dtype)
        connected = (weights > 0) & _both_valid(score, valid, radius)
        change = change_matrix(weights.pow(beta).where(connected, 0.0), offsets)
        vectors = score.permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, K)
        walked = apply_steps(change, vectors, steps)
    return walked.view(batch, height, width, classes).permute(0, 3, 1, 2).contiguous()


def _start(score: Tensor, valid: Tensor | None, boundary: Tensor | None) -> Tensor:
    """Scores the walk begins with, 0 where not valid."""
    check_dims("score", score, "B K H W")
    score, shape = as_float(score), (len(score), *score.shape[2:])
    if valid is not None:
        check_shape("valid", valid, shape, "B H W")
        check_device("valid", valid, "score", score)
        score = score.masked_fill(~valid[:, None], 0.0)
    check_finite("score", score)
    if boundary is not None:
        check_device("boundary", boundary, "score", score)
        boundary = _boundary_map(boundary)
        check_shape("boundary", boundary, shape, "B H W")
        score = score * (1.0 - boundary[:, None].to(score.dtype))
    return score


def _both_valid(score: Tensor, valid: Tensor | None, radius: int) -> Tensor:
    """`(B, P, H, W)` bool: a pixel and its neighbour at each offset are inside the map and valid."""
    shape = (len(score), *score.shape[2:])
    valid = torch.ones(shape, dtype=torch.bool, device=score.device) if valid is None else valid
    padded = _pad(valid, radius, 0.0)
    return _stack([valid & _look(padded, radius, offset) for offset in neighbour_offsets(radius)], valid)


def _path(end: _Offset) -> list[_Offset]:
    """Pixels of the rectangle from (0, 0) to `end` that are closer than 1 to the line between them."""
    dy, dx = end
    rows, columns = range(dy + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def _pad(maps: Tensor, radius: int, value: float) -> Tensor:
    """Add `radius` - 1 pixels at the left, right and bottom of `(..., H, W)`: offsets never point up."""
    reach = radius - 1
    return functional.pad(maps, (reach, reach, 0, reach), value=value)


def _look(padded: Tensor, radius: int, offset: _Offset) -> Tensor:
    """View `(..., H, W)` of the neighbours at an offset, in maps padded by `_pad`."""
    (dy, dx), reach = offset, radius - 1
    height, width = padded.shape[-2] - reach, padded.shape[-1] - 2 * reach
    return padded[..., dy : dy + height, reach + dx : reach + dx + width]


def _stack(maps: list[Tensor], like: Tensor) -> Tensor:
    """`(B, P, H, W)` from P maps `(B, H, W)` shaped `like`; radius 1 has none."""
    return torch.stack(maps, 1) if maps else like.new_empty(len(like), 0, *like.shape[1:])


def _boundary_map(boundary: Tensor) -> Tensor:
    """Check a boundary map and return it as `(B, H, W)`."""
    if boundary.ndim == 4 and boundary.shape[1] == 1:
        boundary = boundary[:, 0]
    if boundary.ndim != 3:
        raise ValueError(f"Expected `boundary` of shape (B, 1, H, W) or (B, H, W), but got {tuple(boundary.shape)}.")
    check_unit("boundary", boundary, hint="Logits need a sigmoid.")
    return boundary
