"""Logistic regression between two sets of features."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_dims, check_positive, check_shape, full_precision


@torch.no_grad()
def balanced_logistic(
    positive: Tensor, negative: Tensor, *, l2: float = 1e-3, iterations: int = 30, tol: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Tell positive rows from negative ones by a linear score; both sets weigh the same, whatever their sizes.

    Minimises `(mean_F log(1 + exp(-z)) + mean_G log(1 + exp(z))) / 2 + (l2 / 2) |w|^2`, `z = w · f + b`, where F are
    the positive rows and G the negative ones.

    Args:
        positive: `(F, D)` rows, F > 0.
        negative: `(G, D)` rows, G > 0.
        l2: weight of the penalty on w, > 0; the bias is free.
        iterations: upper bound on the Newton steps.
        tol: stop when the gradient is this much shorter than at w = 0.

    Returns:
        Weight `(D,)` and bias `()` in the precision of the rows, float32 at least.

    Raises:
        ValueError: if a shape does not fit, a set is empty, or `l2` is not positive.

    Source: Newton's method with conjugate gradients for logistic regression, Lin, Weng & Keerthi 2008 (JMLR 9).
    Differs: steps are halved until the loss falls, in place of a trust region.
    """
    check_dims("positive", positive, "F D")
    check_dims("negative", negative, "G D")
    check_shape("negative", negative, (len(negative), positive.shape[1]), "G D")
    check_positive("rows in positive", len(positive))
    check_positive("rows in negative", len(negative))
    check_positive("l2", l2)
    with full_precision(positive):
        problem = _Logistic(as_float(positive), as_float(negative), l2)
        solution = _minimize(problem, iterations=iterations, tol=tol)
    return solution[:-1], solution[-1]


def _minimize(problem: "_Logistic", *, iterations: int, tol: float) -> Tensor:
    solution = torch.zeros_like(problem.penalty)  # (D + 1,), the bias last
    start = problem.gradient(solution).norm()
    for _ in range(iterations):
        gradient = problem.gradient(solution)
        if gradient.norm() <= tol * start:
            break
        step = _solve(problem, solution, gradient)
        loss, size = problem.loss(solution), 1.0
        allowed = loss + 8 * torch.finfo(loss.dtype).eps * loss.abs()  # what rounding may hide
        while size > 1e-4 and problem.loss(solution + size * step) > allowed + 1e-4 * size * (gradient @ step):
            size /= 2
        if size <= 1e-4:  # rounding ends the descent
            break
        solution = solution + size * step
    return solution


class _Logistic:
    """Loss, gradient and curvature of the regression; parameters are `(D + 1,)`."""

    def __init__(self, positive: Tensor, negative: Tensor, l2: float) -> None:
        self.rows = torch.cat([positive, negative])  # (N, D)
        ones = self.rows.new_ones(len(self.rows))
        self.sign = torch.cat([ones[: len(positive)], -ones[len(positive) :]])
        self.weight = torch.cat([ones[: len(positive)] / len(positive), ones[len(positive) :] / len(negative)])
        self.weight = self.weight / 2
        self.penalty = torch.cat([self.rows.new_full((self.rows.shape[1],), l2), self.rows.new_zeros(1)])

    def score(self, parameters: Tensor) -> Tensor:
        return self.rows @ parameters[:-1] + parameters[-1]

    def loss(self, parameters: Tensor) -> Tensor:
        fit = self.weight @ functional.softplus(-self.sign * self.score(parameters))
        return fit + (self.penalty * parameters.square()).sum() / 2

    def gradient(self, parameters: Tensor) -> Tensor:
        slope = -self.weight * self.sign * (-self.sign * self.score(parameters)).sigmoid()
        return self._collect(slope) + self.penalty * parameters

    def curvature(self, parameters: Tensor) -> Tensor:
        """Second derivative `(N,)` of each row's loss by its score."""
        chance = self.score(parameters).sigmoid()
        return self.weight * chance * (1 - chance)

    def times(self, curvature: Tensor, direction: Tensor) -> Tensor:
        return self._collect(curvature * self.score(direction)) + self.penalty * direction

    def _collect(self, values: Tensor) -> Tensor:
        return torch.cat([values @ self.rows, values.sum()[None]])


def _solve(problem: _Logistic, solution: Tensor, gradient: Tensor, *, iterations: int = 100) -> Tensor:
    """Newton step by conjugate gradients, as exact as the length of the gradient deserves."""
    curvature = problem.curvature(solution)
    step, residual = torch.zeros_like(gradient), -gradient
    direction, square = residual, residual @ residual
    goal = square * square.sqrt().clamp(1e-8, 0.25)
    for _ in range(iterations):
        image = problem.times(curvature, direction)
        bend = direction @ image
        if square <= goal or bend <= 0:
            break
        length = square / bend
        step = step + length * direction
        residual = residual - length * image
        previous, square = square, residual @ residual
        direction = residual + (square / previous) * direction
    return step
