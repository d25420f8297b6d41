"""Many steps of weighted averaging between nearby pixels, with a sparse matrix."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def change_matrix(weights: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Sparse matrix of what one step adds to every pixel: average of itself and its neighbours, minus itself.

    Unlike the averages, whose rows sum to 1 up to rounding, the differences keep small weights exact. In float32 that
    makes hundreds of steps some ten times more accurate.

    Args:
        weights: `(B, P, H, W)` float in [0, 1], weight between a pixel and its neighbour at each offset; must be 0
            where that lies outside the map. The weight of a pixel with itself is 1.
        offsets: P offsets `(dy, dx)` in ascending order, each after (0, 0).

    Returns:
        CSR matrix `(B*H*W, B*H*W)` with one block per image; rows sum to 0.
    """
    batch, _, height, width = weights.shape
    reach = max((max(dy, abs(dx)) for dy, dx in offsets), default=0)
    padded = functional.pad(weights, (reach, reach, reach, 0))
    before = [  # the weight of such a pair is kept at its other pixel
        padded[:, p, reach - dy : reach - dy + height, reach - dx : reach - dx + width]
        for p, (dy, dx) in enumerate(offsets)
    ]
    itself = weights.new_zeros(batch, height, width)
    rows = torch.stack([*reversed(before), itself, *weights.unbind(1)], dim=-1).flatten(0, 2)  # (B*H*W, 2P + 1)
    total = rows.sum(1)
    rows[:, len(offsets)] = -total
    rows /= 1.0 + total[:, None]
    shifts = [dy * width + dx for dy, dx in offsets]
    shift = torch.tensor([*(-s for s in reversed(shifts)), 0, *shifts], dtype=torch.int32, device=weights.device)
    columns = torch.arange(len(rows), dtype=torch.int32, device=weights.device)[:, None] + shift
    kept = rows.abs() >= torch.finfo(rows.dtype).tiny  # denormal numbers are below every rounding error, but slow
    starts = functional.pad(kept.sum(1).cumsum(0), (1, 0)).int()
    return _csr_matrix(starts, columns.masked_select(kept), rows.masked_select(kept))


def apply_steps(change: Tensor, vectors: Tensor, steps: int) -> Tensor:
    """Compute `(1 + change)^steps @ vectors` with about `6 * sqrt(steps)` instead of `steps` products.

    Args:
        change: `(N, N)` of `change_matrix`.
        vectors: `(N, K)` float.
        steps: >= 0.

    Returns:
        `(N, K)`, equal to repeated products up to rounding.
    """
    first, *others = power_coefficients(steps, rest=torch.finfo(vectors.dtype).eps / 100)
    result = first * vectors
    older, newer = vectors, torch.addmm(vectors, change, vectors)
    for coefficient in others:
        result.add_(newer, alpha=coefficient)
        older, newer = newer, torch.addmm(older, change, newer, beta=-1.0, alpha=2.0).add_(newer, alpha=2.0)
    return result


def power_coefficients(power: int, *, rest: float) -> list[float]:
    """Coefficients of the Chebyshev polynomials whose sum is x^power, without the tail that adds up to `rest` at most.

    With x = cos(t), x^n = E[cos(S t)] for the sum S of n random signs, so that degree k has the probability of
    |S| = k, and degrees far above sqrt(n) hardly occur. Weights between pixels are symmetric, so all eigenvalues of
    the averaging are real and in [-1, 1], where no Chebyshev polynomial exceeds 1: the tail can be left out.
    """
    degree = torch.arange(power % 2, power + 1, 2, dtype=torch.float64, device="cpu")
    choices = [torch.lgamma(count + 1) for count in (0.5 * (power + degree), 0.5 * (power - degree))]
    probability = (math.lgamma(power + 1) - choices[0] - choices[1] - power * math.log(2.0)).exp()
    probability[degree > 0] *= 2
    probability = probability[probability.flip(0).cumsum(0).flip(0) > rest]
    result = probability.new_zeros(2 * len(probability))
    result[power % 2 :: 2] = probability / probability.sum()
    coefficients: list[float] = result[: len(result) - 1 + power % 2].tolist()
    return coefficients


def _csr_matrix(starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    size = len(starts) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # its products are not
        return torch.sparse_csr_tensor(
            starts, columns, values, (size, size), device=values.device, check_invariants=False
        )
