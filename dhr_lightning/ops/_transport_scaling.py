"""Scaling rounds of entropic transport, on the kernel itself or in the log domain."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# With logarithms inside these bounds neither the kernel nor a product of scalings leaves the range of the type.
_LINEAR = {torch.float32: 25.0, torch.float64: 250.0}
_BURST = 4
# Rounds shrink the errors by a fixed factor each only near the end; the largest factor bounds the length of a jump.
_NEAR, _SLOWEST = 0.2, 0.95
# A host read stalls a GPU queue, and frozen problems make further rounds harmless.
_PERIOD = 4


class Problem(NamedTuple):
    """A batch of masked transport problems.

    Attributes:
        kernel: `(..., K, N)` log kernel, -inf where a class is absent or a pixel invalid.
        pixels: `(..., N)` bool, pixels that take part.
        classes: `(..., K)` bool, classes that take part.
        shares: `(..., K)` class marginals, > 0 and summing to 1 over the classes that take part.
    """

    kernel: Tensor
    pixels: Tensor
    classes: Tensor
    shares: Tensor


class _Rounds(NamedTuple):
    r: Tensor  # (..., N), where the pixel scaling starts
    c: Tensor  # (..., K), where the class scaling starts
    step: Callable[[Tensor], tuple[Tensor, Tensor]]  # c -> r and the next c
    log: Callable[[Tensor], Tensor]  # class scalings in the domain of the rounds -> their logarithms
    exp: Callable[[Tensor], Tensor]  # and back
    change: Callable[[Tensor, Tensor], Tensor]  # two pixel scalings in turn -> (...), what `tol` bounds
    compose: Callable[[Tensor, Tensor], Tensor]  # r and c -> plan


def scale(problem: Problem, *, largest: float, absolute: bool, max_iter: int, tol: float) -> Tensor:
    """Alternate the two marginals, each problem up to its own stop.

    Args:
        problem: the kernel and what it has to be scaled to.
        largest: largest magnitude in the live log kernel; it decides the domain of the rounds.
        absolute: stop at a mean change of the pixel scaling below `tol`, otherwise at an L1 error of the pixel
            marginal below `tol`.
        max_iter: largest number of rounds, >= 1.
        tol: see `absolute`.

    Returns:
        Plan `(..., K, N)`, 0 outside the problem.
    """
    linear = largest <= _LINEAR[problem.kernel.dtype]
    rounds = _linear_rounds(problem, absolute) if linear else _log_rounds(problem, absolute)
    r, c = rounds.r, rounds.c
    done = ~problem.classes.any(-1)
    # Only the published stop depends on where it is looked for; looking is half the price of a round.
    burst = 1 if absolute else _BURST
    period = _PERIOD if absolute and problem.kernel.device.type != "cpu" else 1
    start = c
    for first in range(0, max_iter, burst):
        rounds_r, rounds_c = [r], [start]
        for _ in range(min(burst, max_iter - first)):
            new_r, new_c = rounds.step(rounds_c[-1])
            rounds_r.append(new_r)
            rounds_c.append(new_c)
        r, c = torch.where(done[..., None], r, rounds_r[-1]), torch.where(done[..., None], c, rounds_c[-1])
        error = rounds.change(rounds_r[-2], rounds_r[-1])
        done = done | (error < tol)
        if first % period == period - 1 and bool(done.all()):
            break
        start = c if absolute else _extrapolate(rounds_c, error, rounds)
    return rounds.compose(r, c)


def _extrapolate(scalings: list[Tensor], error: Tensor, rounds: _Rounds) -> Tensor:
    """Where the slowest error of the log class scalings `(..., K)` leads if it goes on to shrink at its last rate."""
    if len(scalings) <= _BURST:
        return scalings[-1]
    third, second, latest = rounds.log(torch.stack(scalings[-3:]))
    last, before = latest - second, second - third
    rate = (last * before).sum(-1) / before.square().sum(-1).clamp_min(torch.finfo(last.dtype).tiny)
    rate = rate.clamp(0.0, _SLOWEST) * (error < _NEAR)
    return rounds.exp(latest + last * (rate / (1.0 - rate))[..., None])


def _linear_rounds(problem: Problem, absolute: bool) -> _Rounds:
    """Rounds on the kernel itself: two products and sums each, no exponential of its size."""
    kernel, dtype = problem.kernel.exp(), problem.kernel.dtype
    start, no_pixel, no_class = problem.pixels.to(dtype), (~problem.pixels).to(dtype), (~problem.classes).to(dtype)
    count = start.sum(-1, keepdim=True).clamp_min(1.0)
    mass = start / count  # (..., N)
    shares = problem.shares + no_class  # (..., K), 1 where absent

    def step(c: Tensor) -> tuple[Tensor, Tensor]:
        r = mass / ((kernel * c[..., :, None]).sum(-2) + no_pixel)  # (..., N)
        return r, shares / ((kernel * r[..., None, :]).sum(-1) + no_class)  # (..., K)

    def change(previous: Tensor, r: Tensor) -> Tensor:
        difference = (r - previous) / count if absolute else mass * (previous / (r + no_pixel) - 1.0)
        return difference.abs().sum(-1)

    def compose(r: Tensor, c: Tensor) -> Tensor:
        return kernel * r[..., None, :] * c[..., :, None]

    return _Rounds(start, torch.ones_like(problem.shares), step, torch.log, torch.exp, change, compose)


def _log_rounds(problem: Problem, absolute: bool) -> _Rounds:
    """Rounds on logarithms, for kernels beyond the range of the type."""
    kernel, pixels, classes, shares = problem
    count = pixels.sum(-1, keepdim=True).clamp_min(1)
    log_mass, log_shares = -count.to(kernel.dtype).log(), torch.where(classes, shares, 1.0).log()

    def step(c: Tensor) -> tuple[Tensor, Tensor]:
        r = torch.where(pixels, log_mass - _log_sum(kernel + c[..., :, None], -2), 0.0)  # (..., N)
        return r, torch.where(classes, log_shares - _log_sum(kernel + r[..., None, :], -1), 0.0)  # (..., K)

    def change(previous: Tensor, r: Tensor) -> Tensor:
        difference = r.exp() - previous.exp() if absolute else (previous - r).expm1()
        return torch.where(pixels, difference.abs() / count, 0.0).sum(-1)

    def compose(r: Tensor, c: Tensor) -> Tensor:
        return (kernel + r[..., None, :] + c[..., :, None]).exp()

    r, c = torch.zeros_like(kernel[..., 0, :]), torch.zeros_like(shares)
    return _Rounds(r, c, step, _same, _same, change, compose)


def _same(scaling: Tensor) -> Tensor:
    return scaling


def _log_sum(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials; 0 with gradient 0, not NaN, where all of `x` is -inf."""
    top = x.detach().amax(dim, keepdim=True)
    top = top.masked_fill(top.isinf(), 0.0)
    total = (x - top).exp().sum(dim)
    return torch.where(total > 0, total, 1.0).log() + top.squeeze(dim)
