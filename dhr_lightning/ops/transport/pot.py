"""POT's batch solver, as a reference for our own."""

from importlib.util import find_spec

import torch
from torch import Tensor

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops.transport.problem import Problem

# Ours ends when all class shares are right to `tol`, and is then nearer to the plan than POT at the same pixel error.
_STRICTER = 10.0


def check_pot(option: str) -> None:
    """Refuse the backend where POT is absent.

    Args:
        option: name of the option that asks for it.

    Raises:
        DependencyError: if POT is not installed.
    """
    if find_spec("ot") is None:
        raise DependencyError(
            f"POT is not installed, but `{option}` is 'pot'. Run `pip install 'dhr-lightning[pot]'` or use 'torch'."
        )


def solve_with_pot(problem: Problem, score: Tensor, *, epsilon: float, max_iter: int, tol: float) -> Tensor:
    """Solve a batch of masked transport problems with `ot.batch.solve_batch`.

    Args:
        problem: kernel, masks and class marginals.
        score: `(..., K, N)` float similarity behind the kernel, finite inside the masks.
        epsilon: entropy weight, > 0.
        max_iter: largest number of iterations, >= 1.
        tol: ten times the L1 error of the pixel marginal at which to stop; POT goes on until every problem of the batch
            is there.

    Returns:
        Plan `(..., K, N)`, 0 outside the problem.

    Raises:
        DependencyError: if POT is not installed.
    """
    check_pot("backend")
    from ot.batch import solve_batch

    classes, pixels = score.shape[-2:]
    alive = problem.classes.flatten(0, -2).any(-1) if score.ndim > 2 else problem.classes.any()[None]
    chosen = alive.nonzero()[:, 0]  # POT answers an empty problem with NaN
    if len(chosen) == 0:
        return torch.zeros_like(problem.kernel)
    inside = problem.kernel.isfinite()
    cost = torch.where(inside, 1.0 - score, 0.0).reshape(-1, classes, pixels)[chosen]
    mass = problem.pixels.reshape(-1, pixels)[chosen].to(score.dtype)
    shares = problem.shares.reshape(-1, classes)[chosen]
    # POT bounds the L2 error, which is at least the L1 error over the root of the number of pixels.
    result = solve_batch(
        cost.mT,
        epsilon,
        mass / mass.sum(-1, keepdim=True),
        shares,
        max_iter=max_iter,
        tol=tol / _STRICTER / pixels**0.5,
        method="log_sinkhorn",
        grad="autodiff" if score.requires_grad else "detach",
    )
    plan: Tensor = torch.zeros_like(score).view(-1, classes, pixels).index_copy(0, chosen, result.plan.mT)
    return plan.view_as(score)
