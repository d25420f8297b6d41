"""Scaling iterations of entropic transport with the stopping rule of the published DHR code."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops.transport.problem import Problem, log_sum


class _Iteration(NamedTuple):
    r: Tensor  # (..., N), where the pixel scaling starts
    c: Tensor  # (..., K), where the class scaling starts
    step: Callable[[Tensor], tuple[Tensor, Tensor]]  # c -> r and the next c
    change: Callable[[Tensor, Tensor], Tensor]  # two pixel scalings in turn -> (...), their mean absolute difference
    compose: Callable[[Tensor, Tensor], Tensor]  # r and c -> plan


def scale(problem: Problem, *, max_iter: int, tol: float) -> Tensor:
    """Alternate the two marginals, each problem up to its own stop.

    Args:
        problem: the kernel and what it has to be scaled to.
        max_iter: largest number of iterations, >= 1.
        tol: mean absolute change of the pixel scaling over the valid pixels at which a problem freezes.

    Returns:
        Plan `(..., K, N)`, 0 outside the problem.
    """
    iteration = _linear_iteration(problem) if problem.linear else _log_iteration(problem)
    r, c = iteration.r, iteration.c
    done = ~problem.classes.any(-1)
    for number in range(max_iter):
        new_r, new_c = iteration.step(c)
        change = iteration.change(r, new_r)
        r, c = torch.where(done[..., None], r, new_r), torch.where(done[..., None], c, new_c)
        done = done | (change < tol)
        if problem.look(number) and bool(done.all()):
            break
    return iteration.compose(r, c)


def _linear_iteration(problem: Problem) -> _Iteration:
    """One iteration on the kernel itself: two products and sums, no exponential of its size."""
    kernel, dtype = problem.kernel.exp(), problem.kernel.dtype
    start, no_pixel, no_class = problem.pixels.to(dtype), (~problem.pixels).to(dtype), (~problem.classes).to(dtype)
    count = start.sum(-1, keepdim=True).clamp_min(1.0)
    mass = start / count  # (..., N)
    shares = problem.shares + no_class  # (..., K), 1 where absent

    def step(c: Tensor) -> tuple[Tensor, Tensor]:
        r = mass / ((kernel * c[..., :, None]).sum(-2) + no_pixel)  # (..., N)
        return r, shares / ((kernel * r[..., None, :]).sum(-1) + no_class)  # (..., K)

    def change(previous: Tensor, r: Tensor) -> Tensor:
        return ((r - previous) / count).abs().sum(-1)

    def compose(r: Tensor, c: Tensor) -> Tensor:
        return kernel * r[..., None, :] * c[..., :, None]

    return _Iteration(start, torch.ones_like(problem.shares), step, change, compose)


def _log_iteration(problem: Problem) -> _Iteration:
    """One iteration on logarithms, for kernels beyond the range of the type."""
    kernel, pixels, classes, shares, _ = problem
    count = pixels.sum(-1, keepdim=True).clamp_min(1)
    log_mass, log_shares = -count.to(kernel.dtype).log(), torch.where(classes, shares, 1.0).log()

    def step(c: Tensor) -> tuple[Tensor, Tensor]:
        r = torch.where(pixels, log_mass - log_sum(kernel + c[..., :, None], -2), 0.0)  # (..., N)
        return r, torch.where(classes, log_shares - log_sum(kernel + r[..., None, :], -1), 0.0)  # (..., K)

    def change(previous: Tensor, r: Tensor) -> Tensor:
        return torch.where(pixels, (r.exp() - previous.exp()).abs() / count, 0.0).sum(-1)

    def compose(r: Tensor, c: Tensor) -> Tensor:
        return (kernel + r[..., None, :] + c[..., :, None]).exp()

    return _Iteration(torch.zeros_like(kernel[..., 0, :]), torch.zeros_like(shares), step, change, compose)
