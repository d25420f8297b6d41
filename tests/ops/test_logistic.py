import pytest
import torch

from dhr_lightning.ops.logistic import balanced_logistic


def random_sets(*, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(70, 5, generator=generator, dtype=dtype) + torch.tensor([1.0, 0, -1, 0, 0.5])
    return positive, torch.randn(200, 5, generator=generator, dtype=dtype) * 1.5


def loss(positive: torch.Tensor, negative: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, l2: float):
    fit = [-(positive @ weight + bias).sigmoid().log().mean(), -(1 - (negative @ weight + bias).sigmoid()).log().mean()]
    return sum(fit) / 2 + l2 / 2 * weight.square().sum()


def newton(positive: torch.Tensor, negative: torch.Tensor, l2: float) -> torch.Tensor:
    """The same minimum by whole Newton steps with the exact second derivative."""
    solution = torch.zeros(positive.shape[1] + 1, dtype=positive.dtype)

    def of(parameters: torch.Tensor) -> torch.Tensor:
        return loss(positive, negative, parameters[:-1], parameters[-1], l2)

    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(of, solution)
        solution = solution - torch.linalg.solve(torch.autograd.functional.hessian(of, solution), gradient)
    return solution


@pytest.mark.parametrize("l2", [1e-3, 0.1, 3.0])
def test_it_finds_the_minimum(l2: float):
    positive, negative = random_sets()
    weight, bias = balanced_logistic(positive, negative, l2=l2, tol=1e-9)
    expected = newton(positive, negative, l2)
    torch.testing.assert_close(torch.cat([weight, bias[None]]), expected, atol=1e-6, rtol=1e-6)
    single = balanced_logistic(positive.float(), negative.float(), l2=l2)
    assert single[0].dtype == torch.float32
    torch.testing.assert_close(single[0], weight.float(), atol=2e-3, rtol=2e-3)


def test_both_sets_weigh_the_same_whatever_their_sizes():
    positive, negative = random_sets()
    weight, bias = balanced_logistic(positive, negative, tol=1e-9)
    more = balanced_logistic(positive.repeat(9, 1), negative, tol=1e-9)
    torch.testing.assert_close(more[0], weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(more[1], bias, atol=1e-6, rtol=1e-6)
    turned = balanced_logistic(negative, positive, tol=1e-9)
    torch.testing.assert_close(turned[0], -weight, atol=1e-6, rtol=1e-6)


def test_sets_that_a_plane_divides_have_a_finite_solution_that_divides_them():
    positive, negative = torch.tensor([[3.0, 0.0], [4.0, 1.0]]), torch.tensor([[-1.0, 0.0], [-2.0, 1.0], [-9.0, 5.0]])
    weight, bias = balanced_logistic(positive, negative)
    assert weight.isfinite().all()
    assert (positive @ weight + bias > 0).all()
    assert (negative @ weight + bias < 0).all()


def test_sets_that_are_equal_are_told_apart_by_nothing():
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    weight, bias = balanced_logistic(rows, rows)
    torch.testing.assert_close(weight, torch.zeros(3), atol=1e-6, rtol=0)
    assert float(bias) == pytest.approx(0, abs=1e-6)


def test_more_channels_than_rows_converge():
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(40, 600, generator=generator) + 0.2, torch.randn(60, 600, generator=generator)
    weight, bias = (part.requires_grad_() for part in balanced_logistic(positive, negative, l2=1e-2))
    gradient = torch.autograd.grad(loss(positive, negative, weight, bias, 1e-2), (weight, bias))
    start = (positive.mean(0) - negative.mean(0)).norm() / 4
    assert torch.cat([gradient[0], gradient[1][None]]).norm() < 1e-3 * start


@torch.inference_mode()
def test_it_works_where_autograd_is_off_and_precision_is_lowered():
    positive, negative = random_sets(dtype=torch.float32)
    expected = balanced_logistic(positive, negative)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = balanced_logistic(positive, negative)
    assert torch.equal(found[0], expected[0])


def test_wrong_arguments_are_named():
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"Expected `positive` of shape \(F, D\), but got \(3,\)"):
        balanced_logistic(rows[0], rows)
    with pytest.raises(ValueError, match=r"Expected `negative` of shape .* \(2, 3\), but got \(2, 2\)"):
        balanced_logistic(rows, rows[:, :2])
    with pytest.raises(ValueError, match=r"Expected `rows in negative` > 0, but got 0"):
        balanced_logistic(rows, rows[:0])
    with pytest.raises(ValueError, match=r"Expected `l2` > 0, but got 0"):
        balanced_logistic(rows, rows, l2=0)
