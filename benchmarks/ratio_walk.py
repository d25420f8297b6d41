"""The random walk on neighbours against squarings of a dense matrix, as published code has it."""

from collections.abc import Iterator

import torch
from ratio_base import Options, Ratio, paired_medians
from torch import Tensor

from dhr_lightning.ops.affinity import neighbour_offsets, path_affinity, random_walk

SIDE, CLASSES, RADIUS = 64, 4, 5
BETA, SQUARINGS = 10.0, 8


def sample() -> tuple[Tensor, Tensor]:
    """Scores `(1, K, H, W)` in [0, 1] and the affinities of mostly sharp boundaries."""
    generator = torch.Generator().manual_seed(0)
    boundary = (40 * torch.rand(1, SIDE, SIDE, generator=generator) - 30).sigmoid()
    return torch.rand(1, CLASSES, SIDE, SIDE, generator=generator), path_affinity(boundary, radius=RADIUS)


def sparse_walk(score: Tensor, affinity: Tensor) -> Tensor:
    """Run the package's walk."""
    return random_walk(score, affinity, radius=RADIUS, beta=BETA, steps=2**SQUARINGS)


def transition(affinity: Tensor) -> Tensor:
    """Dense `(N, N)` transition matrix of one image; columns sum to 1."""
    pixel = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    dense = torch.eye(SIDE * SIDE, dtype=affinity.dtype)
    for p, (dy, dx) in enumerate(neighbour_offsets(RADIUS)):
        left, right = max(0, -dx), SIDE - max(0, dx)
        start, end = pixel[: SIDE - dy, left:right], pixel[dy:, left + dx : right + dx]
        dense[start, end] = dense[end, start] = affinity[0, p, : SIDE - dy, left:right]
    dense = dense.pow(BETA)
    return dense / dense.sum(0, keepdim=True)


def dense_walk(score: Tensor, affinity: Tensor) -> Tensor:
    """Square the dense matrix and apply it once."""
    matrix = transition(affinity)
    for _ in range(SQUARINGS):
        matrix = matrix @ matrix
    return (score.flatten(2) @ matrix).view_as(score)


def exact_walk(score: Tensor, affinity: Tensor) -> Tensor:
    """Every step on its own, in float64."""
    values = score.double().flatten(2)[0].T  # (N, K)
    steps = transition(affinity.double()).T.to_sparse()  # COO, because the CSR layout warns
    for _ in range(2**SQUARINGS):
        values = steps @ values
    return values.T.view(score.shape)


def rows(options: Options) -> Iterator[Ratio]:
    """Measure speed and equality on one image of 64 x 64 pixels."""
    score, affinity = sample()
    sparse, dense = paired_medians(
        lambda: sparse_walk(score, affinity), lambda: dense_walk(score, affinity), repeats=options.repeats
    )
    yield Ratio(
        f"random walk on neighbours vs dense squarings, {SIDE}x{SIDE}, {2**SQUARINGS} steps",
        dense / sparse,
        goal=20,
        detail=f"{1e3 * sparse:.0f} ms vs {1e3 * dense:.0f} ms; radius {RADIUS}, {CLASSES} classes, float32",
    )
    exact = exact_walk(score, affinity)
    ours, theirs = (float((walk(score, affinity) - exact).abs().max()) for walk in (sparse_walk, dense_walk))
    yield Ratio(
        "largest error of the random walk",
        ours,
        goal=1e-4,
        at_most=True,
        unit="",
        detail=f"scores in [0, 1]; error of the dense squarings: {theirs:.1e}; both against single steps in float64",
    )
