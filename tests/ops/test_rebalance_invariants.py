"""Every option of the mask step against the slow reference, and what must hold whatever the option."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rebalance_reference import rebalance_reference
from rebalance_samples import DEFAULT, MIXED, make_image, run

from dhr_lightning.ops.profiles import PROFILES
from dhr_lightning.ops.refine import Refiner

OPTIONS = {
    "default": DEFAULT,
    "reference": replace(PROFILES["reference"], min_pixels=6),
    "relu": replace(DEFAULT, heatmap="relu", grouping="row_upper", tau=0.3),
    "seeds alone": replace(DEFAULT, seed="all", seed_background=False),
    "paper's order": replace(DEFAULT, heatmap="min_max", final_transport=True, final_order="before"),
    "relu, paper's order": replace(DEFAULT, heatmap="relu", final_transport=True, final_order="before"),
    "area": replace(DEFAULT, heatmap="min_max", final_transport=True, final_marginal="area"),
    "mix": replace(DEFAULT, heatmap="min_max", final_transport=True, final_marginal="mix", preserve_ignore=True),
    "mix before": replace(DEFAULT, final_transport=True, final_marginal="mix", final_order="before"),
    "unsupervised features alone": replace(DEFAULT, features="uss", pooling="majority"),
    "both features, last level, min-max": replace(DEFAULT, wss_levels="last", heatmap="min_max"),
    "both features, no groups, majority": replace(DEFAULT, wss=False, pooling="majority"),
    "first level, all classes": replace(DEFAULT, wss_levels="first", group_cost="all", tau=0.3),
    "last level, rows, all classes": replace(
        DEFAULT, wss_levels="last", group_cost="all", grouping="row_upper", tau=0.3, heatmap="min_max"
    ),
    "masks alone": replace(DEFAULT, uss=False, seed="none"),
}
CONVERGED = {
    "converged": replace(DEFAULT, stopping="marginal", heatmap="min_max", final_transport=True),
    "converged mix": replace(DEFAULT, stopping="marginal", final_transport=True, final_marginal="mix"),
}


def reference(sample, offset, options, seed, tie):
    tags = sample["tags"].nonzero()[:, 0].tolist()
    keys = [0, *[t + 1 for t in tags]] if offset else tags
    cam = {t + offset: sample["cam"][t].double().numpy() / max(float(sample["cam"][t].max()), 1e-5) for t in tags}
    levels = [level.double().numpy() for level in sample["wss"]]
    return rebalance_reference(
        sample["mask"].numpy(), cam, sample["uss"].double().numpy(), levels, keys, offset, options, seed, tie
    )


def check(images, offset, options, atol=2e-4, tie=1e-4):
    result, keys, _ = run(images, offset=offset, options=options)
    for b, sample in enumerate(images):
        height, width = sample["mask"].shape
        seed, init, mask = (x[b, :height, :width].numpy() for x in (result.seed, result.init, result.mask))
        expected = reference(sample, offset, options, seed, tie)
        np.testing.assert_array_equal(init, expected["init"])
        sure = expected["seed_margin"] > tie
        np.testing.assert_array_equal(seed[sure], expected["seed"][sure])
        sure = expected["margin"] > 5 * atol
        np.testing.assert_array_equal(mask[sure], expected["mask"][sure])
        for k, key in enumerate(keys[b].tolist() if options.uss else ()):
            h, w = sample["uss"].shape[1:]
            heat = expected["heat"].get(key, np.zeros((h, w)))
            np.testing.assert_allclose(result.heatmaps[b, k, :h, :w].numpy(), heat, atol=atol)
    return result


@pytest.mark.parametrize("offset", [1, 0])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_the_slow_reference(name, offset):
    images = [make_image(20 + i, offset=offset, **arguments) for i, arguments in enumerate(MIXED)]
    check(images, offset, OPTIONS[name])


@pytest.mark.parametrize("name", CONVERGED)
def test_converged_transport_is_near_the_slow_reference(name):
    images = [make_image(20 + i, **arguments) for i, arguments in enumerate(MIXED)]
    check(images, 1, CONVERGED[name], atol=3e-2, tie=3e-2)


@given(
    seed=st.integers(0, 10_000),
    tags=st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=3),
    grids=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=3, max_size=3),
    mask=st.sampled_from(["random", "ignore", "constant", "tiny", "stray"]),
    offset=st.sampled_from([0, 1]),
    name=st.sampled_from(sorted(OPTIONS)),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_batches_of_any_shape_equal_one_by_one(seed, tags, grids, mask, offset, name):
    images = [
        make_image(seed + i, tags=tuple(sorted(t)), grid=grids[i], mask=mask, offset=offset) for i, t in enumerate(tags)
    ]
    together, keys, valid = run(images, offset=offset, options=OPTIONS[name])
    assert (together.mask[~valid] == 255).all()
    for b, sample in enumerate(images):
        alone, own, _ = run([sample], offset=offset, options=OPTIONS[name])
        height, width = sample["mask"].shape
        count = own.shape[1]
        assert torch.equal(keys[b, :count], own[0])
        assert torch.equal(together.init[b, :height, :width], alone.init[0])
        assert set(together.mask[b].unique().tolist()) <= {255, *own[0].tolist()}
        if alone.heatmaps is not None:
            h, w = alone.heatmaps.shape[2:]
            torch.testing.assert_close(together.heatmaps[b, :count, :h, :w], alone.heatmaps[0], atol=2e-4, rtol=0)
        same = together.mask[b, :height, :width] == alone.mask[0]
        assert same.float().mean() > 0.99  # rounding may flip a tie


@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(OPTIONS)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_seeded_class_survives_in_the_initial_mask(seed, name):
    images = [make_image(seed + i, **arguments) for i, arguments in enumerate(MIXED)]
    options = OPTIONS[name]
    result, keys, _ = run(images, options=options)
    for b in range(len(images) if options.seed != "none" else 0):
        seeded = set(result.seed[b].unique().tolist()) - {255}
        assert seeded <= set(keys[b][keys[b] > 0].tolist())
        assert seeded <= set(result.init[b].unique().tolist())


@pytest.mark.parametrize("name", ["default", "reference", "mix"])
def test_one_class_constant_maps_and_features_give_finite_masks(name):
    sample = make_image(3, tags=(2,))
    flat = dict(
        sample,
        cam=torch.ones_like(sample["cam"]),
        uss=torch.ones_like(sample["uss"]),
        wss=[torch.ones_like(level) for level in sample["wss"]],
    )
    empty = dict(flat, cam=torch.zeros_like(sample["cam"]), uss=torch.zeros_like(sample["uss"]))
    for image in (sample, flat, empty):
        for offset in (0, 1):
            result = run([image], offset=offset, options=OPTIONS[name])[0]
            assert result.heatmaps.isfinite().all()
            assert set(result.mask.unique().tolist()) <= {0, 2 + offset, 255}


@pytest.mark.parametrize("guard", ["heatmap", "seed", "both"])
def test_guarded_classes_outlive_a_refinement_that_removes_them(guard):
    def background_only(image, score, present, *, valid=None):
        refined = torch.zeros_like(score)
        refined[:, 0] = 1.0
        return refined

    images = [make_image(40 + i, **arguments) for i, arguments in enumerate(MIXED)]
    bare = run(images, options=replace(DEFAULT, guard="none"), refine_final=background_only)[0]
    result, keys, valid = run(images, options=replace(DEFAULT, guard=guard), refine_final=background_only)
    plain = run(images, options=DEFAULT)[0]
    restored = 0
    for b in range(len(images)):
        source = {"seed": [result.seed], "heatmap": [plain.mask]}.get(guard, [result.seed, plain.mask])
        wanted = set().union(*(s[b][valid[b]].unique().tolist() for s in source)) - {0, 255}
        wanted &= set(keys[b].tolist())
        assert wanted <= set(result.mask[b].unique().tolist())
        restored += len(wanted - set(bare.mask[b].unique().tolist()))
    assert restored, "the refinement must remove classes"


def test_permuted_images_give_permuted_results():
    images = [make_image(60 + i, **arguments) for i, arguments in enumerate(MIXED)]
    order = [3, 0, 7, 5, 1, 2, 6, 4]
    refine = Refiner(backend="pamr", dilations=(1, 2), pamr_iterations=2)
    first = run(images, refine_final=refine)[0]
    second = run([images[i] for i in order], refine_final=refine)[0]
    assert torch.equal(first.mask[order], second.mask)
