"""The mask step with POT in place of our transport."""

from dataclasses import replace

import pytest
from rebalance_samples import MIXED, make_image, run

from dhr_lightning.errors import DependencyError
from dhr_lightning.ops.profiles import PROFILES, RebalanceSettings, rebalance_settings
from dhr_lightning.ops.transport import plan, pot

CHOICES = {
    "default": PROFILES["default"],
    "reference": PROFILES["reference"],
    "shares": replace(PROFILES["reference"], final_order="before", final_marginal="mix"),
    "groups": replace(PROFILES["reference"], final_marginal="area", group_cost="all", tau=0.3),
}


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", CHOICES)
def test_masks_by_pot_are_those_of_our_converged_transport(name: str, offset: int):
    options = replace(CHOICES[name], min_pixels=6)
    images = [make_image(8 * seed + i, offset=offset, **one) for seed in range(4) for i, one in enumerate(MIXED)]
    ours, _, valid = run(images, offset=offset, options=replace(options, stopping="marginal"))
    masks, _, _ = run(images, offset=offset, options=replace(options, transport="pot"))
    assert (ours.mask == masks.mask)[valid].float().mean() >= 0.999
    assert (ours.seed == masks.seed)[valid].float().mean() >= 0.999
    if options.final_transport:  # where the solver stops decides nothing in the default
        stopped, _, _ = run(images, offset=offset, options=options)
        assert (stopped.mask != masks.mask).sum() > 2 * (ours.mask != masks.mask).sum()


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("marginal", ["uniform", "area"])
def test_every_transport_of_the_mask_step_is_solved_by_the_chosen_backend(monkeypatch, order, marginal):
    solved = []
    for name in ("scale", "converge", "solve_with_pot"):
        solve = getattr(plan, name)
        monkeypatch.setattr(
            plan, name, lambda *a, _name=name, _solve=solve, **k: solved.append(_name) or _solve(*a, **k)
        )
    images = [make_image(0, tags=(0, 1, 3), grid=(6, 6))]
    options = replace(PROFILES["reference"], final_order=order, final_marginal=marginal)
    for change, solver in (
        ({"transport": "pot"}, "solve_with_pot"),
        ({"transport": "torch", "stopping": "marginal"}, "converge"),
        ({"transport": "torch"}, "scale"),
    ):
        solved.clear()
        result, *_ = run(images, options=replace(options, **change))
        assert result.groups.any()
        assert solved == [solver] * 3  # seeds, groups, all classes


def test_transport_options_reach_the_solver_as_they_were_chosen():
    assert RebalanceSettings().transport_options == {"epsilon": 0.1, "stopping": "absolute", "backend": "torch"}
    chosen = rebalance_settings(transport="pot", epsilon=0.3).transport_options
    assert chosen == {"epsilon": 0.3, "stopping": "marginal", "backend": "pot"}


def test_missing_pot_is_named_with_its_extra_when_settings_are_made(monkeypatch):
    monkeypatch.setattr(pot, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"`transport` is 'pot'\. Run `pip install 'dhr-lightning\[pot\]'` or"):
        rebalance_settings("reference", transport="pot")
