"""Entropic optimal transport between the pixels and the classes of an image."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_choice, check_device, check_positive, check_shape, full_precision
from dhr_lightning.ops.cam import min_max_normalize
from dhr_lightning.ops.transport.newton import converge
from dhr_lightning.ops.transport.pot import solve_with_pot
from dhr_lightning.ops.transport.problem import Problem
from dhr_lightning.ops.transport.scaling import scale

Stopping = Literal["absolute", "marginal"]
Marginal = Literal["uniform", "area", "mix"] | Tensor
TransportBackend = Literal["torch", "pot"]

# A plan row is a constant if it varies less than this; rounding in the log domain stays below.
_FLAT = 1e-4


class TransportOptions(TypedDict):
    """How every transport of a mask step is solved: arguments of `transport_weights` of the same names."""

    epsilon: float
    stopping: Stopping
    backend: TransportBackend


class _Options(NamedTuple):
    epsilon: float
    stopping: Stopping
    marginal: Marginal
    area: Tensor | None
    backend: TransportBackend
    max_iter: int
    tol: float


class _Solution(NamedTuple):
    plan: Tensor  # (..., K, N), 0 where the class is absent or the pixel invalid
    valid: Tensor  # (..., N)


def transport_weights(
    score: Tensor,
    *,
    valid: Tensor | None = None,
    present: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    marginal: Marginal = "uniform",
    area: Tensor | None = None,
    backend: TransportBackend = "torch",
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Weight every pixel of every class by its transport plan, scaled to [0, 1] per class.

    Args:
        score: `(..., K, N)` similarity of pixel n to class k, usually in [0, 1]; the cost is `1 - score`. Finite for
            the classes and pixels that take part.
        valid: `(..., N)` bool, pixels that take part; default all.
        present: `(..., K)` bool, classes that take part; default all.
        epsilon: entropy weight, > 0 (λ in the paper). Smaller is sharper.
        stopping: `"absolute"` stops as the published code does, after few iterations; `"marginal"` converges.
        marginal: `"uniform"` class shares; `"area"`, those of `area`; `"mix"`, half uniform and half area; or shares
            `(..., K)` >= 0 themselves. All are rescaled to sum to 1 over the classes that take part.
        area: `(..., K)` >= 0, area of each class in the initial mask, in any unit; read by `"area"` and `"mix"` only.
        backend: `"torch"`, or `"pot"` for the batch solver of POT, a slow reference for `stopping="marginal"`.
        max_iter: largest number of iterations, >= 1.
        tol: see `transport_plan`.

    Returns:
        Same shape, float: minimum 0 and maximum 1 per class; all 1 for a class whose plan is constant, which is so for
        a single class and for classes with equal scores; 0 where the class is absent, its share 0 or the pixel invalid.

    Raises:
        ValueError: see `transport_plan`.
        DependencyError: if `backend` is `"pot"` and POT is not installed.

    Source: f_OT of DHR (arXiv:2404.00380), Eq. (2), and the min-max of its code.
    Differs: the smallest range is relative, not 1e-5; a constant plan gives 1, not 0, and so leaves its map alone.
    """
    solution = _solve(score, valid, present, _Options(epsilon, stopping, marginal, area, backend, max_iter, tol))
    top = solution.plan.amax(-1, keepdim=True)
    share = solution.plan / top.clamp_min(torch.finfo(top.dtype).tiny)
    weights = min_max_normalize(share, valid=solution.valid, spatial_dims=1)  # an absent class is constant: 0
    alive = solution.valid[..., None, :]
    flat = share.masked_fill(~alive, 1.0).amin(-1, keepdim=True) > 1.0 - _FLAT
    return torch.where(flat, alive.to(weights.dtype), weights)


def transport_plan(
    score: Tensor,
    *,
    valid: Tensor | None = None,
    present: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    marginal: Marginal = "uniform",
    area: Tensor | None = None,
    backend: TransportBackend = "torch",
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Entropic transport plan between uniform pixels and class shares.

    Arguments are those of `transport_weights`. `tol` bounds, for `stopping="absolute"`, the mean absolute change of the
    pixel scaling r over the valid pixels; for `"marginal"`, the L1 error of the pixel marginal and more. Every problem
    of a batch freezes at its own iteration, so its result does not depend on the others, up to rounding.

    Returns:
        `(..., K, N)` plan >= 0 that sums to 1 per problem. Class marginals are exact; pixel marginals, 1/N each, hold
        up to `tol` with `stopping="marginal"` and may be far off with `"absolute"`. Differentiable; with `"marginal"`
        the gradient is that of the converged plan, as exact as the plan is.

    Raises:
        ValueError: if a shape, dtype or device does not fit, an option is unknown, `epsilon`, `tol` or `max_iter` is
            not positive, a live score is not finite, or shares are negative, not finite or all 0.
        DependencyError: if `backend` is `"pot"` and POT is not installed.

    Source: Cuturi 2013 (arXiv:1306.0895); stopping rule of the published DHR code.
    Differs: log domain where the kernel would leave the range of the type, so that a small `epsilon` cannot underflow;
        with `stopping="marginal"`, Newton steps take the place of most iterations and lead to the same plan.
    """
    return _solve(score, valid, present, _Options(epsilon, stopping, marginal, area, backend, max_iter, tol)).plan


def transport_posterior(
    score: Tensor,
    *,
    valid: Tensor | None = None,
    present: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    marginal: Marginal = "uniform",
    area: Tensor | None = None,
    backend: TransportBackend = "torch",
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Share of each class in every pixel's row of the plan.

    Arguments and errors are those of `transport_weights`.

    Returns:
        `(..., K, N)` in [0, 1], summing to 1 over the present classes of a valid pixel; 0 elsewhere.

    Source: the plan's rows; they equal a softmax of `score / epsilon` with one bias per class.
    """
    options = _Options(epsilon, stopping, marginal, area, backend, max_iter, tol)
    plan = _solve(score, valid, present, options).plan
    return plan / plan.sum(-2, keepdim=True).clamp_min(torch.finfo(plan.dtype).tiny)


def _solve(score: Tensor, valid: Tensor | None, present: Tensor | None, options: _Options) -> _Solution:
    """Check the arguments, set up masked marginals and scale the kernel."""
    _check_options(score, options)
    *lead, classes, pixels = score.shape
    everything = torch.ones((), dtype=torch.bool, device=score.device)
    pixel = everything.expand(*lead, pixels) if valid is None else valid
    klass = everything.expand(*lead, classes) if present is None else present
    _check_mask("valid", pixel, (*lead, pixels), "... N", score)
    _check_mask("present", klass, (*lead, classes), "... K", score)
    with full_precision(score):
        score = as_float(score)
        full = valid is None and present is None and isinstance(options.marginal, str) and options.marginal == "uniform"
        if not full:
            klass = klass & pixel.any(-1, keepdim=True)
        shares = _shares(options, klass, score)
        if not full:
            klass = klass & (shares > 0)
            pixel = pixel & klass.any(-1, keepdim=True)
        masked = None if full else ~(klass[..., :, None] & pixel[..., None, :])
        kernel = (score - 1.0) / options.epsilon
        largest = _largest(score, kernel, masked)
        kernel = kernel if masked is None else kernel.masked_fill(masked, -torch.inf)
        plan = _plan(Problem(kernel, pixel, klass, shares, largest), score, options)
        return _Solution(plan, pixel)


def _plan(problem: Problem, score: Tensor, options: _Options) -> Tensor:
    max_iter, tol = options.max_iter, options.tol
    if options.backend == "pot":
        return solve_with_pot(problem, score, epsilon=options.epsilon, max_iter=max_iter, tol=tol)
    return (scale if options.stopping == "absolute" else converge)(problem, max_iter=max_iter, tol=tol)


def _shares(options: _Options, live: Tensor, score: Tensor) -> Tensor:
    """Class marginals `(..., K)` that sum to 1 over the live classes."""
    even = live.to(score.dtype)
    even = even / even.sum(-1, keepdim=True).clamp_min(1.0)
    name, given = ("area", options.area) if isinstance(options.marginal, str) else ("marginal", options.marginal)
    if isinstance(options.marginal, str) and options.marginal == "uniform":
        return even
    if given is None:
        raise ValueError(f"Expected `area` of shape (..., K) with `marginal` = {options.marginal!r}, but got none.")
    check_shape(name, given, live.shape, "... K")
    check_device(name, given, "score", score)
    given = as_float(given).to(score.dtype).masked_fill(~live, 0.0)
    total = given.sum(-1, keepdim=True)
    fits = total.isfinite()[..., 0] & (given >= 0).all(-1) & ((total[..., 0] > 0) | ~live.any(-1))
    if not bool(fits.all()):
        first = (~fits).nonzero()[0]
        raise ValueError(
            f"Expected `{name}` >= 0, finite and not all 0 over the present classes, but got "
            f"{given[tuple(first)].tolist()}{_place(first)}. Use `marginal` = 'uniform' where areas are unknown."
        )
    shares = given / total.clamp_min(torch.finfo(score.dtype).tiny)
    return (shares + even) / 2 if isinstance(options.marginal, str) and options.marginal == "mix" else shares


def _largest(score: Tensor, kernel: Tensor, masked: Tensor | None) -> float:
    """Largest magnitude in the log kernel outside the mask, where it must be finite; one host read."""
    if not kernel.numel():
        return 0.0
    live = kernel.detach() if masked is None else kernel.detach().masked_fill(masked, 0.0)
    low, high = torch.stack(torch.aminmax(live)).tolist()
    largest: float = max(-low, high)
    if math.isfinite(largest):
        return largest
    first = (~live.isfinite()).nonzero()[0]
    image, (klass, pixel) = first[:-2], first[-2:].tolist()
    raise ValueError(
        f"Expected finite `score` (also divided by `epsilon`), but got {float(score[tuple(first)])} for class {klass} "
        f"at pixel {pixel}{_place(image)}. Check the features or maps it was made from."
    )


def _check_options(score: Tensor, options: _Options) -> None:
    if score.ndim < 2:
        raise ValueError(f"Expected `score` of shape (..., K, N), but got {tuple(score.shape)}.")
    if 0 in score.shape[-2:]:
        raise ValueError(f"Expected `score` with a class and a pixel at least, but got shape {tuple(score.shape)}.")
    for name in ("epsilon", "max_iter", "tol"):
        check_positive(name, getattr(options, name))
    check_choice("stopping", options.stopping, ("absolute", "marginal"))
    check_choice("backend", options.backend, ("torch", "pot"))
    if isinstance(options.marginal, str):
        check_choice("marginal", options.marginal, ("uniform", "area", "mix"))
    if options.backend == "pot" and options.stopping != "marginal":
        raise ValueError(
            f"Expected `stopping` = 'marginal' with `backend` = 'pot', but got {options.stopping!r}: POT converges."
        )


def _check_mask(name: str, mask: Tensor, shape: Sequence[int], letters: str, score: Tensor) -> None:
    check_shape(name, mask, shape, letters)
    check_device(name, mask, "score", score)
    if mask.dtype != torch.bool:
        raise ValueError(f"Expected `{name}` of type torch.bool, but got {mask.dtype}.")


def _place(index: Iterable[Tensor]) -> str:
    """Name a problem of a batch by its index over the leading axes."""
    numbers = ", ".join(str(int(i)) for i in index)
    return f" of image {numbers}" if numbers else ""
