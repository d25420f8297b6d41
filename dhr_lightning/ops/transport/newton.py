"""Converged entropic transport: Newton's method on one bias per class."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops.transport.problem import Problem, log_sum

# Logarithmic error at which an iteration is closer to scaling than to Newton; no useful step is longer than the
# second, and a wild one would cost the kernel its digits.
_REACH, _LONGEST = 10.0, 40.0


class _Posterior(NamedTuple):
    p: Tensor  # (B, K, N), share of each class in a pixel; 0 outside the problem
    mass: Tensor  # (B, K), its sum over the pixels; 0 where the class is absent
    missing: Tensor  # (B, K), logarithm of target / mass, which a scaling iteration adds to the bias; 0 where absent
    log_p: Tensor | None  # in the log domain, where `p` may underflow


class _Targets(NamedTuple):
    log_mass: Tensor  # (B, K), logarithm of the pixels that a class is to have; 0 where absent
    level: Tensor  # (B, K, K), fixes the level of the biases, which changes nothing, and those of absent classes
    absent: Tensor  # (B, K), 1 where the class is absent, else 0


_Evaluate = Callable[[Tensor], _Posterior]


def converge(problem: Problem, *, max_iter: int, tol: float) -> Tensor:
    """Find the class biases b for which `softmax(kernel + b)` has the class marginals, each problem up to its own stop.

    Rows of the softmax have the pixel marginal by construction, so that K unknowns are left. With m the class masses
    and p the softmax, a scaling iteration solves `diag(m) step = m log(target / m)` and a Newton step the same with
    `diag(m) - p pᵀ`. Iterations take `diag(m) - θ p pᵀ` and θ goes from 0 to 1 as the error shrinks: they neither creep
    nor overshoot. One that comes no closer all the same is replaced by a scaling iteration, which always does.

    Args:
        problem: the kernel and what it has to be scaled to.
        max_iter: largest number of evaluations of the softmax, >= 1.
        tol: error at which a problem freezes: the largest minus the smallest `log(target / m)` of its classes. It
            bounds the L1 error of the pixel marginal, too.

    Returns:
        Plan `(..., K, N)`, 0 outside the problem. A last scaling makes the class marginals exact. Differentiable: the
        biases by their optimality condition, so that no iteration is kept in memory; as exact as the biases are.

    Source: Newton steps after Brauer, Clason, Lorenz & Wirth 2018 (arXiv:1710.06635).
    Differs: on the class side only, where the system is K x K; θ is ours.
    """
    shape = problem.kernel.shape
    problem = _flatten(problem)
    targets = _targets(problem)
    evaluate = _linear(problem, targets) if problem.linear else _log(problem, targets)
    with torch.no_grad():
        bias, posterior = _solve(problem, evaluate, targets, max_iter=max_iter, tol=tol)
    if torch.is_grad_enabled() and (problem.kernel.requires_grad or problem.shares.requires_grad):
        posterior = evaluate(_attach(bias, evaluate(bias), targets))
    count = _count(problem)
    if posterior.log_p is None:
        plan = posterior.p * (posterior.missing.exp() / count)[..., None]
    else:
        plan = (posterior.log_p + (posterior.missing - count.log())[..., None]).exp()
    return plan.view(shape)


def _solve(
    problem: Problem, evaluate: _Evaluate, targets: _Targets, *, max_iter: int, tol: float
) -> tuple[Tensor, _Posterior]:
    """Biases `(B, K)` and what they lead to."""
    bias = step = scaling = torch.zeros_like(problem.shares)
    best = torch.full_like(bias[:, :1], torch.inf)  # (B, 1), as all that follows
    done = ~problem.classes.any(1, keepdim=True)
    plain = torch.zeros_like(done)
    for number in range(max_iter):
        trial = bias + step
        posterior = evaluate(trial)
        low, high = torch.aminmax(posterior.missing, dim=1, keepdim=True)
        error = high - low  # shrinks in every scaling iteration (Birkhoff); NaN or infinite after too long a step
        better = (error < best) | plain  # a scaling iteration may gain less than rounding hides
        best = torch.where(better, error, best)
        done = done | (best < tol)
        if problem.look(number) and bool(done.all()):
            return trial, posterior  # what is done has not moved since
        bias = torch.where(better, trial, bias)
        scaling = torch.where(better, posterior.missing, scaling)
        step = torch.where(better, _newton_step(posterior, targets, (error / -_REACH).exp()), scaling)
        step = step.masked_fill(done, 0.0)
        plain = ~better
    return bias, evaluate(bias)


def _newton_step(posterior: _Posterior, targets: _Targets, theta: Tensor) -> Tensor:
    """Step `(B, K)` of the biases; not finite or wild if the system is near singular."""
    factor, _ = torch.linalg.cholesky_ex(_jacobian(posterior, targets, theta))
    return _solve_step(factor, posterior).clamp(-_LONGEST, _LONGEST)


def _solve_step(factor: Tensor, posterior: _Posterior) -> Tensor:
    """Step `(B, K)` towards the targets, with the Cholesky factor of a Jacobian."""
    wanted = posterior.mass.detach() * posterior.missing
    return torch.cholesky_solve(wanted[..., None], factor)[..., 0]


def _jacobian(posterior: _Posterior, targets: _Targets, theta: Tensor) -> Tensor:
    """Derivative `(B, K, K)` of the class masses by the biases for `theta` = 1, made regular."""
    together = torch.bmm(posterior.p, posterior.p.mT)
    jacobian = torch.addcmul(targets.level, together, theta[..., None], value=-1.0)
    jacobian.diagonal(dim1=1, dim2=2).add_(posterior.mass)
    return jacobian


def _attach(bias: Tensor, posterior: _Posterior, targets: _Targets) -> Tensor:
    """Biases of the same value, with the gradient of the solution by kernel and shares."""
    with torch.no_grad():
        factor, info = torch.linalg.cholesky_ex(_jacobian(posterior, targets, torch.ones_like(bias[:, :1])))
        sound = (info == 0) & factor.isfinite().all(-1).all(-1)
        unit = torch.eye(bias.shape[-1], dtype=bias.dtype, device=bias.device)
        factor = torch.where(sound[:, None, None], factor, unit)
    step = torch.where(sound[:, None], _solve_step(factor, posterior), posterior.missing)
    return bias + (step - step.detach())


def _linear(problem: Problem, targets: _Targets) -> _Evaluate:
    """Softmax from the kernel itself: no exponential of its size in an iteration."""
    kernel, no_pixel = problem.kernel.exp(), (~problem.pixels).to(problem.kernel.dtype)[:, None]

    def evaluate(bias: Tensor) -> _Posterior:
        weighted = kernel * bias.exp()[..., None]  # (B, K, N)
        p = weighted / (weighted.sum(1, keepdim=True) + no_pixel)
        mass = p.sum(2)
        return _Posterior(p, mass, targets.log_mass - (mass + targets.absent).log(), None)

    return evaluate


def _log(problem: Problem, targets: _Targets) -> _Evaluate:
    """Softmax from logarithms, for kernels beyond the range of the type."""

    def evaluate(bias: Tensor) -> _Posterior:
        shifted = problem.kernel + bias[..., None]
        log_p = shifted - log_sum(shifted, 1)[:, None]
        log_mass = torch.where(problem.classes, log_sum(log_p, 2), 0.0)
        return _Posterior(log_p.exp(), log_mass.exp() - targets.absent, targets.log_mass - log_mass, log_p)

    return evaluate


def _targets(problem: Problem) -> _Targets:
    absent = (~problem.classes).to(problem.kernel.dtype)
    wanted = problem.shares * _count(problem)
    level = torch.diag_embed(absent) + (wanted[:, :, None] * problem.shares[:, None]).detach()
    return _Targets((wanted + absent).log(), level, absent)


def _count(problem: Problem) -> Tensor:
    """Valid pixels `(B, 1)`, at least 1."""
    return problem.pixels.sum(1, keepdim=True).clamp_min(1).to(problem.kernel.dtype)


def _flatten(problem: Problem) -> Problem:
    """Join the leading axes to one."""
    classes, pixels = problem.kernel.shape[-2:]
    return problem._replace(
        kernel=problem.kernel.reshape(-1, classes, pixels),
        pixels=problem.pixels.reshape(-1, pixels),
        classes=problem.classes.reshape(-1, classes),
        shares=problem.shares.reshape(-1, classes),
    )
