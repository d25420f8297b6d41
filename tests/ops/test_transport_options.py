"""Class shares, backends, numeric domains and errors of the transport."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops.transport import newton, pot, problem
from dhr_lightning.ops.transport.plan import transport_plan, transport_posterior, transport_weights

CONVERGED = {"stopping": "marginal", "tol": 1e-10, "max_iter": 5000}
AREA = torch.tensor([[60.0, 30.0, 10.0], [0.0, 5.0, 15.0]], dtype=torch.float64)


def scores(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("marginal", "expected"),
    [
        ("uniform", [[1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]]),
        ("area", [[0.6, 0.3, 0.1], [0.0, 0.25, 0.75]]),
        ("mix", [[0.6 / 2 + 1 / 6, 0.3 / 2 + 1 / 6, 0.1 / 2 + 1 / 6], [1 / 6, 0.25 / 2 + 1 / 6, 0.75 / 2 + 1 / 6]]),
    ],
)
@pytest.mark.parametrize("epsilon", [0.003, 0.1])
def test_each_share_rule_gives_the_plan_of_pot(marginal, expected, epsilon):
    score = scores(2, 3, 40) if epsilon > 0.01 else 0.9 + 0.1 * scores(2, 3, 40)
    plan = transport_plan(score, epsilon=epsilon, marginal=marginal, area=AREA, **CONVERGED)
    torch.testing.assert_close(plan.sum(2), torch.tensor(expected, dtype=torch.float64))
    for b in range(2):
        shares = np.array(expected[b])
        live = shares > 0
        cost = 1 - score[b].numpy().T[:, live]
        target = ot.bregman.sinkhorn_log(
            np.full(40, 1 / 40), shares[live], cost, epsilon, numItermax=20000, stopThr=1e-13
        )
        np.testing.assert_allclose(plan[b].numpy().T[:, live], target, atol=1e-8)
        assert (plan[b, ~live] == 0).all()


def test_shares_are_those_of_the_present_classes():
    present = torch.tensor([[True, True, False], [False, True, True]])
    mix = transport_plan(scores(2, 3, 20), present=present, marginal="mix", area=AREA, **CONVERGED).sum(2)
    expected = [[1 / 3 + 1 / 4, 1 / 6 + 1 / 4, 0], [0, 1 / 8 + 1 / 4, 3 / 8 + 1 / 4]]
    torch.testing.assert_close(mix, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("epsilon", [0.004, 0.1])
@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
@pytest.mark.parametrize("function", [transport_plan, transport_weights, transport_posterior])
def test_a_share_of_zero_gives_zero_not_nan(function, stopping, epsilon):
    area = torch.tensor([1.0, 0.0, 3.0])
    score = scores(3, 30).float()
    result = function(score, stopping=stopping, epsilon=epsilon, marginal="area", area=area, max_iter=400)
    assert result.isfinite().all()
    assert (result[1] == 0).all()
    same = function(score[[0, 2]], stopping=stopping, epsilon=epsilon, marginal="area", area=area[[0, 2]], max_iter=400)
    torch.testing.assert_close(result[[0, 2]], same)


@pytest.mark.parametrize("function", [transport_plan, transport_weights, transport_posterior])
def test_a_hundred_rounds_are_the_most_by_default(function):
    score = scores(4, 60) ** 3
    early, default, late = (
        function(score, epsilon=0.01, tol=1e-30, **given) for given in ({"max_iter": 99}, {}, {"max_iter": 101})
    )
    assert torch.equal(default, function(score, epsilon=0.01, tol=1e-30, max_iter=100))
    assert not torch.equal(default, early)
    assert not torch.equal(default, late)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_logarithm_of_no_mass_is_zero_without_gradient(dim):
    x = torch.tensor([[-torch.inf, -torch.inf], [-torch.inf, -1.0]], dtype=torch.float64, requires_grad=True)
    total = problem.log_sum(x, dim)
    assert total.tolist() == [0.0, -1.0]
    total.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [0.0, 1.0]]


@given(
    lead=st.sampled_from([(), (1,), (3,), (2, 2)]),
    classes=st.integers(1, 5),
    pixels=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_backend_pot_gives_the_same_results(lead, classes, pixels, seed):
    generator = torch.Generator().manual_seed(seed)
    options = {
        "valid": torch.rand(*lead, pixels, generator=generator) < 0.8,
        "present": torch.rand(*lead, classes, generator=generator) < 0.8,
        "marginal": torch.rand(*lead, classes, generator=generator, dtype=torch.float64) + 0.1,
    }
    score = scores(*lead, classes, pixels, seed=seed)
    for function in (transport_plan, transport_weights, transport_posterior):
        ours = function(score, **options, **CONVERGED)
        torch.testing.assert_close(function(score, backend="pot", **options, **CONVERGED), ours, atol=1e-6, rtol=1e-5)


def test_pot_has_the_gradient_of_our_plan():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(2, 3, 12, generator=generator, dtype=torch.float64)
    gradients = []
    for backend in ("torch", "pot"):
        score = scores(2, 3, 12).requires_grad_()
        (
            transport_plan(score, backend=backend, stopping="marginal", tol=1e-12, max_iter=3000) * weight
        ).sum().backward()
        gradients.append(score.grad)
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3


def test_missing_pot_is_named(monkeypatch):
    monkeypatch.setattr(pot, "find_spec", lambda name: None)
    with pytest.raises(
        DependencyError,
        match=r"POT is not installed, but `backend` is 'pot'\. Run `pip install 'dhr-lightning\[pot\]'`",
    ):
        transport_plan(scores(2, 4), backend="pot", stopping="marginal")


@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
def test_both_domains_give_the_same_plan(monkeypatch, stopping):
    score = 2 * scores(4, 3, 50) - 1
    valid, present = torch.ones(4, 50, dtype=torch.bool), torch.ones(4, 3, dtype=torch.bool)
    valid[1, 30:], present[2, 0], present[3] = False, False, False
    options = {"stopping": stopping, "valid": valid, "present": present}
    linear = transport_plan(score.float(), **options)
    monkeypatch.setattr(problem, "_LINEAR", dict.fromkeys(problem._LINEAR, 0.0))
    torch.testing.assert_close(transport_plan(score.float(), **options), linear, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(transport_plan(score, **options).float(), linear, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.1, 10.0])
@pytest.mark.parametrize("level", [-1e3, -1.0, 0.0, 1.0, 1e3])
@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
def test_constant_maps_and_wide_kernels_are_finite(stopping, level, epsilon):
    flat = torch.full((3, 20), level)
    assert (transport_weights(flat, epsilon=epsilon, stopping=stopping) == 1).all()
    rough = level + scores(3, 20).float()
    for function in (transport_plan, transport_weights, transport_posterior):
        assert function(rough, epsilon=epsilon, stopping=stopping).isfinite().all()
    torch.testing.assert_close(
        transport_plan(rough, epsilon=epsilon, stopping=stopping).sum(1), torch.full((3,), 1 / 3)
    )


def test_a_problem_does_not_feel_its_neighbours():
    easy, hard = scores(3, 40), torch.cat([0.9 + 0.1 * scores(1, 40), 0.1 * scores(2, 40)])
    for stopping in ("absolute", "marginal"):
        together = transport_plan(torch.stack([easy, hard, easy]), stopping=stopping, epsilon=0.05)
        assert torch.equal(together[0], together[2])
        for part, one in zip(together, (easy, hard), strict=False):
            torch.testing.assert_close(part, transport_plan(one, stopping=stopping, epsilon=0.05))


SHARES = {
    "even": torch.full((4,), 0.25),
    "small classes": torch.tensor([0.9, 0.08, 0.019, 0.001]),
    "one large class": torch.tensor([0.01, 0.04, 0.05, 0.9]),
}


def plain_round(posterior, targets, theta):
    return posterior.missing


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("epsilon", [0.05, 0.1])
@pytest.mark.parametrize("wide", [False, True])
def test_newton_reaches_the_plan_of_plain_iterations_sooner(monkeypatch, shares, epsilon, wide):
    if wide:
        monkeypatch.setattr(problem, "_LINEAR", dict.fromkeys(problem._LINEAR, 0.0))
    score = torch.stack([scores(4, 200, seed=seed) ** (3 * seed + 1) for seed in range(4)])
    options = {"stopping": "marginal", "epsilon": epsilon, "marginal": SHARES[shares].double().expand(4, 4)}
    few = transport_plan(score, tol=1e-30, max_iter=15, **options)
    monkeypatch.setattr(newton, "_newton_step", plain_round)
    plain = transport_plan(score, tol=1e-12, max_iter=20_000, **options)
    assert ((plain.sum(1) - 1 / 200).abs().sum(1) < 1e-11).all()
    torch.testing.assert_close(few, plain, atol=1e-13, rtol=1e-6)
    slow = transport_plan(score, tol=1e-30, max_iter=15, **options)
    assert (slow - plain).abs().max() > 1000 * (few - plain).abs().max()


@pytest.mark.parametrize("epsilon", [0.001, 0.005, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_epsilon_converges(epsilon, dtype):
    score = torch.stack([scores(4, 200, seed=seed) ** (6 * seed + 6) for seed in range(4)]).to(dtype)
    shares = SHARES["one large class"].expand(4, 4)
    plan = transport_plan(score, stopping="marginal", epsilon=epsilon, marginal=shares, tol=1e-5, max_iter=400)
    assert ((plan.sum(1) - 1 / 200).abs().sum(1) < 1e-5).all()


@pytest.mark.parametrize("step", ["nan", "wild", "back"])
@pytest.mark.parametrize("epsilon", [0.003, 0.1])
def test_steps_that_lead_nowhere_are_taken_back(monkeypatch, step, epsilon):
    steps = {
        "nan": lambda posterior, targets, theta: posterior.missing * torch.nan,
        "wild": lambda posterior, targets, theta: posterior.missing * 1e30,
        "back": lambda posterior, targets, theta: -posterior.missing,
    }
    score = torch.stack([scores(4, 200, seed=seed) ** (seed + 1) for seed in range(4)])
    options = {"stopping": "marginal", "epsilon": epsilon, "tol": 1e-30}
    monkeypatch.setattr(newton, "_newton_step", plain_round)
    plain = transport_plan(score, max_iter=16, **options)
    monkeypatch.setattr(newton, "_newton_step", steps[step])
    torch.testing.assert_close(transport_plan(score, max_iter=32, **options), plain, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("tol", [0.1, 1e-3, 1e-9])
@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_tol_bounds_the_error_of_the_pixel_marginal(tol, epsilon):
    score = torch.stack([scores(4, 200, seed=seed) ** (seed + 1) for seed in range(6)])
    plan = transport_plan(score, stopping="marginal", tol=tol, max_iter=20_000, epsilon=epsilon)
    torch.testing.assert_close(plan.sum(2), torch.full((6, 4), 0.25, dtype=torch.float64))
    assert ((plan.sum(1) - 1 / 200).abs().sum(1) < tol).all()


@pytest.mark.parametrize("function", [transport_plan, transport_posterior])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
def test_gradients_with_masks_and_zero_shares(function, wide, stopping, monkeypatch):
    if wide:
        monkeypatch.setattr(problem, "_LINEAR", dict.fromkeys(problem._LINEAR, 0.0))
    score = scores(2, 4, 6).requires_grad_()
    present = torch.tensor([[True, True, True, True], [True, False, True, True]])
    options = {"present": present, "valid": torch.arange(12).view(2, 6) < 10, "stopping": stopping, "max_iter": 60}
    area = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]]).double()
    assert torch.autograd.gradcheck(
        lambda s: function(s, epsilon=0.5, tol=1e-13, marginal="area", area=area, **options), score
    )


def test_gradient_by_the_shares():
    score, shares = scores(2, 3, 20), (scores(2, 3, seed=1) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: transport_plan(score, marginal=v, **CONVERGED), shares)


def test_gradient_of_empty_problems_is_zero():
    score = scores(2, 2, 5).requires_grad_()
    present = torch.tensor([[False, False], [True, True]])
    transport_posterior(score, present=present)[:, 0].square().sum().backward()
    assert score.grad.isfinite().all()
    assert (score.grad[0] == 0).all()
    assert (score.grad[1] != 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_named(bad):
    score = scores(3, 2, 4).float()
    score[2, 1, 3] = bad
    with pytest.raises(ValueError, match=rf"finite `score`.*but got {bad} for class 1 at pixel 3 of image 2\."):
        transport_weights(score)
    with pytest.raises(ValueError, match=r"for class 1 at pixel 3\."):
        transport_plan(score[2])
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2, 3] = False
    assert transport_weights(score, valid=valid).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"marginal": "area"}, r"`area` of shape \(\.\.\., K\) with `marginal` = 'area', but got none"),
        ({"marginal": "mix", "area": torch.ones(2)}, r"Expected `area` of shape .* \(3,\), but got \(2,\)"),
        ({"marginal": "mix", "area": torch.tensor([1.0, -1.0, 3.0])}, r"`area` >= 0, finite .* got \[1\.0, -1\.0, 3"),
        ({"marginal": "area", "area": torch.tensor([1.0, torch.nan, 3.0])}, "Expected `area` >= 0, finite"),
        ({"marginal": "area", "area": torch.tensor([1.0, torch.inf, 3.0])}, "Expected `area` >= 0, finite"),
        ({"marginal": "area", "area": torch.zeros(3)}, r"not all 0 .* got \[0\.0, 0\.0, 0\.0\]"),
        ({"marginal": torch.tensor([0.0, 0.0, -1.0])}, "Expected `marginal` >= 0, finite"),
        ({"marginal": "equal"}, "Expected `marginal` to be one of uniform, area, mix, but got 'equal'"),
        ({"backend": "numpy"}, "Expected `backend` to be one of torch, pot, but got 'numpy'"),
        ({"backend": "pot"}, "`stopping` = 'marginal' with `backend` = 'pot', but got 'absolute'"),
        ({"present": torch.ones(3)}, r"Expected `present` of type torch\.bool, but got torch\.float32"),
        (
            {"valid": torch.ones(4, dtype=torch.bool, device="meta")},
            "`valid` on the device of `score`, cpu, but got meta",
        ),
        ({"marginal": torch.ones(3, device="meta")}, "Expected `marginal` on the device of `score`"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        transport_plan(torch.zeros(3, 4), **arguments)


def test_shares_of_an_image_are_named_and_empty_images_need_none():
    area = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"got \[0\.0, 0\.0\] of image 1"):
        transport_plan(torch.zeros(2, 2, 4), marginal="area", area=area)
    present = torch.tensor([[True, True], [False, False]])
    assert transport_plan(torch.zeros(2, 2, 4), marginal="area", area=area, present=present)[1].sum() == 0


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4)])
def test_nothing_to_transport_is_an_error_but_no_problem_is_not(shape):
    with pytest.raises(ValueError, match="with a class and a pixel at least, but got shape"):
        transport_plan(torch.zeros(shape))
    assert transport_weights(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("stopping", ["absolute", "marginal"])
def test_cuda_equals_cpu(stopping):
    score = scores(5, 4, 300).float() ** 4
    present = torch.ones(5, 4, dtype=torch.bool)
    present[1, 2] = False
    expected = transport_plan(score, present=present, stopping=stopping, tol=1e-4)
    result = transport_plan(score.cuda(), present=present.cuda(), stopping=stopping, tol=1e-4)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-7, rtol=1e-3)
