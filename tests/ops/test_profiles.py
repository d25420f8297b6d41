"""Named profiles, and what their choices do to a mask."""

from dataclasses import replace

import pytest
import torch
from rebalance_samples import MIXED, make_image, run

from dhr_lightning.ops.profiles import PROFILES, RebalanceSettings, rebalance_settings

NO_GUARD = RebalanceSettings(min_pixels=6, guard="none")


def erase(image, score, present, *, valid=None):
    """A refinement that gives every pixel to the first class."""
    refined = torch.zeros_like(score)
    refined[:, 0] = 1.0
    return refined


def first_class_only(images):
    result, keys, _ = run(images, options=NO_GUARD, refine_final=erase)
    return result, keys


def test_profiles_are_the_default_settings_and_the_published_choices():
    assert rebalance_settings() == RebalanceSettings() == PROFILES["default"]
    reference = rebalance_settings("reference")
    assert (reference.seed, reference.heatmap, reference.grouping) == ("all", "min_max", "row_upper")
    assert (reference.final_transport, reference.final_marginal, reference.stopping) == (True, "uniform", "absolute")
    assert (reference.epsilon, reference.tau, reference.guard) == (0.1, 0.8, "none")
    assert rebalance_settings("reference", tau=0.5) == replace(reference, tau=0.5)


def test_unknown_profiles_and_fields_are_refused():
    with pytest.raises(ValueError, match="Expected `profile` to be one of default, reference, but got 'paper'"):
        rebalance_settings("paper")
    with pytest.raises(TypeError, match="taau"):
        rebalance_settings(taau=0.5)


@pytest.mark.parametrize("guard", ["heatmap", "seed", "both"])
def test_guard_restores_what_the_last_refinement_removed(guard: str):
    images = [make_image(7, tags=(0, 1, 3)), make_image(8, tags=(2,), grid=(3, 6))]
    bare, keys = first_class_only(images)
    assert not ((bare.mask > 0) & (bare.mask < 255)).any()  # every foreground class is gone
    guarded, _, _ = run(images, options=replace(NO_GUARD, guard=guard), refine_final=erase)
    before, _, _ = run(images, options=replace(NO_GUARD, refine_final=False))
    for b in range(len(images)):
        for k, key in enumerate(keys[b].tolist()):
            sources = {"heatmap": [before.mask[b]], "seed": [bare.seed[b]], "both": [before.mask[b], bare.seed[b]]}
            if key > 0 and bare.active[b, k] and any((source == key).any() for source in sources[guard]):
                assert (guarded.mask[b] == key).any()


@pytest.mark.parametrize(("share", "restored"), [(0.2, False), (0.3, True)])
def test_guard_measures_what_is_left_against_what_was_there(share: float, restored: bool):
    images = [make_image(0, tags=(0, 3), grid=(6, 6))]
    bare, keys, _ = run(images, options=replace(NO_GUARD, uss=True))

    def thin(image, score, present, *, valid=None):  # a quarter of the pixels keep their class
        score[:, 1:] *= torch.zeros(score.shape[2:]).index_put((torch.arange(0, 48, 4),), torch.tensor(1.0))
        return score

    guarded, *_ = run(images, options=replace(NO_GUARD, guard="heatmap", min_share=share), refine_final=thin)
    for key in keys[0, 1:].tolist():
        before, after = (bare.mask[0] == key), (guarded.mask[0] == key)
        assert before.sum() > 100
        assert torch.equal(before, after) is restored


def test_guard_leaves_a_mask_alone_in_which_nothing_vanished():
    images = [make_image(i, **sample) for i, sample in enumerate(MIXED)]
    same = lambda image, score, present, *, valid=None: score  # noqa: E731
    bare, *_ = run(images, options=NO_GUARD, refine_final=same)
    guarded, *_ = run(images, options=replace(NO_GUARD, guard="heatmap"), refine_final=same)
    assert torch.equal(bare.mask, guarded.mask)


def test_without_a_background_one_or_two_classes_cover_the_whole_image():
    images = [make_image(1, tags=(1,)), make_image(2, tags=(0, 3))]

    def probability(image, score, present, *, valid=None):
        return (score + 1e-6 * present[..., None, None]) / (score + 1e-6 * present[..., None, None]).sum(1, True)

    published, *_ = run(images, options=replace(NO_GUARD, seed_background=False), refine_seed=probability)
    ours, *_ = run(images, options=NO_GUARD, refine_seed=probability)
    assert (published.seed < 255).all()
    assert (ours.seed == 255).any()


def test_order_and_shares_of_the_last_transport_matter_only_with_it():
    images = [make_image(5, tags=(0, 1, 2), grid=(6, 6))]
    base, *_ = run(images, options=NO_GUARD)
    for change in ({"final_order": "before"}, {"final_marginal": "mix"}):
        assert torch.equal(run(images, options=replace(NO_GUARD, **change))[0].heatmaps, base.heatmaps)
    heat = {
        marginal: run(images, options=replace(NO_GUARD, final_transport=True, final_marginal=marginal))[0].heatmaps
        for marginal in ("uniform", "area", "mix")
    }
    assert not torch.allclose(heat["area"], heat["mix"])
    assert not torch.allclose(heat["uniform"], heat["mix"])
