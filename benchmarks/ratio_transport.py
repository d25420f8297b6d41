"""Converged transport plans of a batch against the batch solver of POT."""

from collections.abc import Iterator

import torch
from ot.batch import solve_batch
from ratio_base import Options, Ratio, paired_medians
from torch import Tensor

from dhr_lightning.ops.transport.plan import transport_plan

BATCH, CLASSES, EPSILON = 16, 4, 0.1
# POT bounds the L2 error of the pixel marginal, ours a logarithmic one; ours ends no farther from the exact plan.
TOL_POT, TOL = 1e-6, 3e-6


def make_scores(height: int, width: int) -> Tensor:
    """Noisy maps `(B, K, h*w)` in [0, 1] of a background and small objects."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    centre_y, centre_x = torch.rand(2, BATCH, CLASSES - 1, 1, 1, generator=generator)
    radius = 0.08 + 0.1 * torch.rand(BATCH, CLASSES - 1, 1, 1, generator=generator)
    objects = torch.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * radius**2))
    maps = torch.cat([1 - objects.amax(1, keepdim=True), objects], dim=1).flatten(2)
    maps = maps + 0.1 * torch.randn(maps.shape, generator=generator)
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    return (maps - low) / (high - low)


def rows(options: Options) -> Iterator[Ratio]:
    """Time both solvers at plans of the same accuracy, for grids of two sizes."""
    torch.ones(8_000_000)  # a freed large block teaches the allocator to keep pages, as in any running program
    for height, width in ((27, 36), (47, 63)):
        yield _row(make_scores(height, width), options)


def _row(score: Tensor, options: Options) -> Ratio:
    def pot() -> Tensor:
        cost = (1 - score).mT
        return solve_batch(cost, EPSILON, tol=TOL_POT, method="log_sinkhorn", grad="detach").plan.mT

    def ours() -> Tensor:
        return transport_plan(score, epsilon=EPSILON, stopping="marginal", tol=TOL, max_iter=1000)

    exact = transport_plan(score.double(), epsilon=EPSILON, stopping="marginal", tol=1e-13, max_iter=10_000)
    pixels = score.shape[-1]
    apart, far_pot, far_ours = (float(x.abs().max() * pixels) for x in (ours() - pot(), pot() - exact, ours() - exact))
    if apart > 1e-3:
        raise RuntimeError(f"Expected equal plans, but they differ by {apart} of a pixel's mass.")
    slow, fast = paired_medians(pot, ours, repeats=options.repeats)
    return Ratio(
        f"converged transport, {pixels} pixels, against POT's batch solver",
        slow / fast,
        3.0,
        detail=f"batch of {BATCH}, {CLASSES} classes; {slow * 1e3:.1f} and {fast * 1e3:.1f} ms; in units of a pixel's "
        f"mass, plans differ by {apart:.0e} and from the exact plan by {far_pot:.0e} (POT) and {far_ours:.0e}",
    )
