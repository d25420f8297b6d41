import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rebalance_reference import scale

from dhr_lightning.ops.transport.plan import transport_plan, transport_posterior, transport_weights


def scores(*shape, seed=0, power=1.0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("shares", [None, (0.7, 0.2, 0.1)])
def test_converged_plan_equals_pot(epsilon, shares):
    score = scores(3, 50)
    target = np.full(3, 1 / 3) if shares is None else np.array(shares)
    marginal = "uniform" if shares is None else 5.0 * torch.tensor(shares)
    plan = transport_plan(score, epsilon=epsilon, stopping="marginal", marginal=marginal, tol=1e-12, max_iter=5000)
    expected = ot.sinkhorn(np.full(50, 1 / 50), target, 1 - score.numpy().T, epsilon, numItermax=20000, stopThr=1e-13)
    np.testing.assert_allclose(plan.numpy().T, expected, atol=1e-8)


def test_masked_batch_equals_pot_on_the_remaining_rows():
    score = scores(2, 4, 40)
    present = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[0, 25:] = False
    plan = transport_plan(score, valid=valid, present=present, stopping="marginal", tol=1e-12, max_iter=5000)
    for b in range(2):
        part = score[b, present[b]][:, valid[b]].numpy().T
        expected = ot.sinkhorn(*[np.full(n, 1 / n) for n in part.shape], 1 - part, 0.1, numItermax=20000, stopThr=1e-13)
        np.testing.assert_allclose(plan[b, present[b]][:, valid[b]].numpy().T, expected, atol=1e-8)
        assert plan[b, ~present[b]].sum() == 0
        assert plan[b][:, ~valid[b]].sum() == 0


def test_absolute_stop_freezes_every_problem_at_its_own_round():
    problems = [scores(4, 60, seed=i, power=p) for i, p in enumerate((0.5, 1, 3, 8, 30))]
    valid = torch.ones(5, 60, dtype=torch.bool)
    present = torch.ones(5, 4, dtype=torch.bool)
    valid[1, 41:] = False
    present[3, 1] = False
    plans = transport_plan(torch.stack(problems), valid=valid, present=present)
    iterations = []
    for b, problem in enumerate(problems):
        part = problem[present[b]][:, valid[b]].numpy().T
        expected, count = scale(part, 0.1)
        iterations.append(count)
        np.testing.assert_allclose(plans[b, present[b]][:, valid[b]].numpy().T, expected, atol=1e-9)
    assert len(set(iterations)) >= 3, "problems must stop at different iterations, or freezing is not tested"
    assert max(iterations) < 100


def test_absolute_stop_is_far_from_convergence_when_one_class_dominates():
    score = torch.full((2, 1000), 0.1)
    score[0] = 0.9
    score[:, :50] = torch.tensor([[0.3], [0.7]])
    early = transport_plan(score).sum(0) * 1000
    late = transport_plan(score, stopping="marginal", tol=1e-6, max_iter=1000).sum(0) * 1000
    assert (late - 1).abs().max() < 1e-3
    assert (early - 1).abs().max() > 0.1


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 30)),
    seed=st.integers(0, 1000),
    epsilon=st.sampled_from([0.1, 0.5, 2.0]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_marginals(shape, seed, epsilon):
    score = 2 * scores(*shape, seed=seed) - 1
    plan = transport_plan(score, epsilon=epsilon, stopping="marginal", tol=1e-9, max_iter=3000)
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones_like(plan[:, 0, 0]))
    torch.testing.assert_close(plan.sum(2), torch.full_like(plan[..., 0], 1 / shape[1]))
    torch.testing.assert_close(plan.sum(1), torch.full_like(plan[:, 0], 1 / shape[2]), atol=1e-7, rtol=1e-3)
    early = transport_plan(score, epsilon=epsilon)
    torch.testing.assert_close(early.sum(2), torch.full_like(plan[..., 0], 1 / shape[1]))


@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
@pytest.mark.parametrize("marginal", ["uniform", "mix", torch.tensor([1, 2, 3])])
def test_class_marginals_are_exact_to_the_last_digits(stopping, marginal):
    area = torch.tensor([2.0, 3.0, 6.0])
    expected = {"uniform": (1 / 3,) * 3, "mix": (17 / 66, 10 / 33, 29 / 66)}.get(str(marginal), (1 / 6, 1 / 3, 1 / 2))
    plan = transport_plan(scores(3, 40), marginal=marginal, area=area, stopping=stopping)
    assert plan.dtype == torch.float64
    assert plan.sum(1).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
@pytest.mark.parametrize("function", [transport_plan, transport_weights, transport_posterior])
def test_permuting_classes_and_padding_change_nothing(function, stopping):
    score = scores(3, 30, power=4)
    plain = function(score, stopping=stopping)
    torch.testing.assert_close(function(score[[2, 0, 1]], stopping=stopping), plain[[2, 0, 1]])
    padded = torch.full((5, 44), 0.9, dtype=torch.float64)
    padded[1:4, :30] = score
    present, valid = torch.zeros(5, dtype=torch.bool), torch.zeros(44, dtype=torch.bool)
    present[1:4], valid[:30] = True, True
    result = function(padded, valid=valid, present=present, stopping=stopping)
    torch.testing.assert_close(result[1:4, :30], plain)
    result[1:4, :30] = 0
    assert result.sum() == 0


def test_weights_span_zero_to_one_and_single_class_is_one():
    weights = transport_weights(scores(3, 50))
    torch.testing.assert_close(weights.amin(1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(weights.amax(1), torch.ones(3, dtype=torch.float64))
    valid = torch.arange(50) < 40
    single = transport_weights(scores(3, 50), present=torch.tensor([False, True, False]), valid=valid)
    assert torch.equal(single, torch.tensor([0.0, 1.0, 0.0])[:, None].double() * valid)


def test_two_pixels_two_classes_by_hand():
    score = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # symmetric: c = 1, posterior = softmax(score / epsilon)
    share = 1 / (1 + np.exp(-1.0))
    expected = torch.tensor([[share, 1 - share], [1 - share, share]], dtype=torch.float32)
    torch.testing.assert_close(transport_posterior(score, epsilon=1.0), expected)
    torch.testing.assert_close(transport_plan(score, epsilon=1.0), expected / 2)
    torch.testing.assert_close(transport_weights(score, epsilon=1.0), torch.eye(2))


def test_weights_do_not_depend_on_the_number_of_pixels():
    score = scores(2, 64)
    many = score.repeat(1, 2048)  # 131072 pixels: plan entries are below 1e-5
    converged = {"stopping": "marginal", "tol": 1e-9, "max_iter": 500}
    torch.testing.assert_close(transport_weights(many, **converged)[:, :64], transport_weights(score, **converged))


def test_empty_problems_are_zero_not_nan():
    score = torch.full((3, 2, 6), 0.5)
    present = torch.tensor([[False, False], [True, True], [True, True]])
    valid = torch.tensor([[True] * 6, [False] * 6, [True] * 6])
    for function in (transport_plan, transport_weights, transport_posterior):
        for stopping in ("absolute", "marginal"):
            result = function(score, present=present, valid=valid, stopping=stopping)
            assert result.isfinite().all()
            assert result[:2].sum() == 0


def test_classes_with_equal_scores_are_left_alone():
    score = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    assert (transport_weights(score) == 1).all()
    assert (transport_weights(score, epsilon=0.02, stopping="marginal") == 1).all()
    score[0] = score[0].flip(0)
    assert (transport_weights(score).amin(1) == 0).all()


def test_convergence_is_not_mistaken_in_the_first_round():
    kernel = torch.tensor([[0.4, 0.3], [0.1, 0.2]], dtype=torch.float64)  # first r = (1/2) / (1/2), where r starts
    plan = transport_plan(1 + kernel.log(), epsilon=1.0, stopping="marginal", tol=1e-9)
    torch.testing.assert_close(plan.sum(0), torch.full((2,), 0.5, dtype=torch.float64))


def test_class_with_share_zero_gets_nothing():
    result = transport_posterior(scores(2, 9), marginal=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(result, torch.tensor([[1.0], [0.0]]).double().expand(2, 9))
    assert transport_weights(scores(2, 9), marginal=torch.tensor([1.0, 0.0])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_autocast(dtype):
    score = (2 * scores(3, 40) - 1).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        result = transport_plan(score)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, transport_plan(score.float()))


@pytest.mark.parametrize("options", [{"stopping": "absolute", "max_iter": 3}, {"stopping": "marginal"}])
def test_gradient_of_the_plan(options):
    score = scores(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: transport_plan(s, tol=1e-13, **options), score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"Expected `epsilon` > 0, but got 0\.0\."),
        ({"max_iter": 0}, r"Expected `max_iter` > 0, but got 0\."),
        ({"tol": -1.0}, "Expected `tol` > 0"),
        ({"stopping": "never"}, "Expected `stopping` to be one of absolute, marginal, but got 'never'"),
        ({"marginal": "equal"}, "Expected `marginal` to be one of uniform"),
        ({"marginal": torch.ones(2)}, r"Expected `marginal` of shape .* \(3,\), but got \(2,\)"),
        ({"valid": torch.ones(5, dtype=torch.bool)}, r"Expected `valid` of shape .* \(4,\), but got \(5,\)"),
        ({"present": torch.ones(4, dtype=torch.bool)}, "Expected `present` of shape"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        transport_plan(torch.zeros(3, 4), **arguments)
    with pytest.raises(ValueError, match="Expected `score` of shape"):
        transport_plan(torch.zeros(3))
