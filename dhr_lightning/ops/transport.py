"""Entropic optimal transport between the pixels and the classes of an image."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_choice, check_positive, check_shape, full_precision
from dhr_lightning.ops.cam import min_max_normalize

Stopping = Literal["absolute", "marginal"]
Marginal = Literal["uniform"] | Tensor


# A plan row is a constant if it varies less than this; rounding in the log domain stays below.
_FLAT = 1e-4


class _Solution(NamedTuple):
    log_plan: Tensor  # (..., K, N), -inf where the class is absent or the pixel invalid
    valid: Tensor  # (..., N)
    present: Tensor  # (..., K)


def transport_weights(
    score: Tensor,
    *,
    valid: Tensor | None = None,
    present: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    marginal: Marginal = "uniform",
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Weight every pixel of every class by its transport plan, scaled to [0, 1] per class.

    Args:
        score: `(..., K, N)` similarity of pixel n to class k, usually in [0, 1]; the cost is `1 - score`.
        valid: `(..., N)` bool, pixels that take part; default all.
        present: `(..., K)` bool, classes that take part; default all.
        epsilon: entropy weight, > 0 (λ in the paper). Smaller is sharper.
        stopping: `"absolute"` stops as the published code does, after few rounds; `"marginal"` converges.
        marginal: `"uniform"`, or `(..., K)` class shares >= 0 (rescaled to sum to 1 over the present classes).
        max_iter: largest number of rounds, >= 1.
        tol: see `transport_plan`.

    Returns:
        Same shape, float: minimum 0 and maximum 1 per class; all 1 for a class whose plan is constant, which is so for
        a single class and for classes with equal scores; 0 where the class is absent or the pixel invalid.

    Source: f_OT of DHR (arXiv:2404.00380), Eq. (2), and the min-max of its code.
    Differs: the smallest range is relative, not 1e-5; a constant plan gives 1, not 0, and so leaves its map alone.
    """
    solution = _solve(score, valid, present, epsilon, stopping, marginal, max_iter, tol)
    top = solution.log_plan.amax(-1, keepdim=True)
    share = (solution.log_plan - top.masked_fill(top.isinf(), 0.0)).exp()
    weights = min_max_normalize(share, valid=solution.valid, present=solution.present, spatial_dims=1)
    alive = top.isfinite() & solution.valid[..., None, :]
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
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Entropic transport plan between uniform pixels and class shares, in the log domain.

    Arguments are those of `transport_weights`. `tol` bounds, for `stopping="absolute"`, the mean absolute change of the
    pixel scaling r over the valid pixels; for `"marginal"`, the L1 error of the pixel marginal. Every problem of a
    batch freezes at its own round, so its result does not depend on the others.

    Returns:
        `(..., K, N)` plan >= 0 that sums to 1 per problem. Class marginals are exact; pixel marginals, 1/N each, hold
        up to `tol` with `stopping="marginal"` and may be far off with `"absolute"`.

    Raises:
        ValueError: if a shape does not fit, an option is unknown, or `epsilon`, `tol` or `max_iter` is not positive.

    Source: Cuturi 2013 (arXiv:1306.0895); stopping rule of the published DHR code.
    Differs: log domain, so that a small `epsilon` cannot underflow.
    """
    return _solve(score, valid, present, epsilon, stopping, marginal, max_iter, tol).log_plan.exp()


def transport_posterior(
    score: Tensor,
    *,
    valid: Tensor | None = None,
    present: Tensor | None = None,
    epsilon: float = 0.1,
    stopping: Stopping = "absolute",
    marginal: Marginal = "uniform",
    max_iter: int = 100,
    tol: float = 1e-2,
) -> Tensor:
    """Share of each class in every pixel's row of the plan.

    Arguments are those of `transport_weights`.

    Returns:
        `(..., K, N)` in [0, 1], summing to 1 over the present classes of a valid pixel; 0 elsewhere.

    Source: the plan's rows; they equal a softmax of `score / epsilon` with one bias per class.
    """
    log_plan = _solve(score, valid, present, epsilon, stopping, marginal, max_iter, tol).log_plan
    total = log_plan.logsumexp(-2, keepdim=True)
    return (log_plan - total.masked_fill(total.isinf(), 0.0)).exp()


def _solve(
    score: Tensor,
    valid: Tensor | None,
    present: Tensor | None,
    epsilon: float,
    stopping: Stopping,
    marginal: Marginal,
    max_iter: int,
    tol: float,
) -> _Solution:
    """Check the arguments, set up masked marginals and scale the kernel."""
    if score.ndim < 2:
        raise ValueError(f"Expected `score` of shape (..., K, N), but got {tuple(score.shape)}.")
    for name, value in (("epsilon", epsilon), ("max_iter", max_iter), ("tol", tol)):
        check_positive(name, value)
    check_choice("stopping", stopping, ("absolute", "marginal"))
    *lead, classes, pixels = score.shape
    everything = torch.ones((), dtype=torch.bool, device=score.device)
    valid = everything.expand(*lead, pixels) if valid is None else valid
    present = everything.expand(*lead, classes) if present is None else present
    check_shape("valid", valid, (*lead, pixels), "... N")
    check_shape("present", present, (*lead, classes), "... K")
    with full_precision(score):
        score = as_float(score)
        live_pixel = valid & present.any(-1, keepdim=True)
        live_class = present & valid.any(-1, keepdim=True)
        alive = live_class[..., :, None] & live_pixel[..., None, :]
        kernel = ((score - 1.0) / epsilon).masked_fill(~alive, -torch.inf)
        log_pixel = -live_pixel.sum(-1, keepdim=True).clamp_min(1).to(score.dtype).log()  # (..., 1)
        log_class = _log_shares(marginal, live_class, score)
        absolute = stopping == "absolute"
        log_r, log_c = _scale(kernel, live_pixel, live_class, log_pixel, log_class, absolute, max_iter, tol)
        return _Solution(kernel + log_r[..., None, :] + log_c[..., :, None], live_pixel, live_class)


def _log_shares(marginal: Marginal, live: Tensor, score: Tensor) -> Tensor:
    """Log class shares `(..., K)` that sum to 1 over the live classes."""
    if isinstance(marginal, str):
        check_choice("marginal", marginal, ("uniform",))
        shares = live.to(score.dtype)
    else:
        check_shape("marginal", marginal, live.shape, "... K")
        shares = as_float(marginal).to(score.dtype).clamp_min(0.0) * live
    total = shares.sum(-1, keepdim=True)
    return (shares / total.clamp_min(torch.finfo(score.dtype).tiny)).log()


def _scale(
    kernel: Tensor,
    pixel: Tensor,
    klass: Tensor,
    log_pixel: Tensor,
    log_class: Tensor,
    absolute: bool,
    max_iter: int,
    tol: float,
) -> tuple[Tensor, Tensor]:
    """Alternate the two marginals; returns the log scalings r `(..., N)` and c `(..., K)`."""
    log_r = torch.zeros_like(pixel, dtype=kernel.dtype)
    log_c = torch.zeros_like(klass, dtype=kernel.dtype)
    count = pixel.sum(-1).clamp_min(1)
    done = ~klass.any(-1)
    # A host read stalls a GPU queue, and frozen problems make further rounds harmless.
    period = 1 if kernel.device.type == "cpu" else 4
    for step in range(max_iter):
        new_r = torch.where(pixel, log_pixel - (kernel + log_c[..., :, None]).logsumexp(-2), 0.0)  # (..., N)
        new_c = torch.where(klass, log_class - (kernel + new_r[..., None, :]).logsumexp(-1), 0.0)  # (..., K)
        change = new_r.exp() - log_r.exp() if absolute else (log_r - new_r).expm1()
        change = torch.where(pixel, change.abs(), 0.0).sum(-1) / count
        log_r = torch.where(done[..., None], log_r, new_r)
        log_c = torch.where(done[..., None], log_c, new_c)
        if absolute or step:  # the first scaling has not met a class marginal yet
            done = done | (change < tol)
        if step % period == period - 1 and bool(done.all()):
            break
    return log_r, log_c
