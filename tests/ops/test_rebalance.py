"""The whole rebalancing against a slow reference, and its invariants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rebalance_reference import rebalance_reference
from rebalance_samples import DEFAULT, MIXED, TAGS, make_image, run

from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import rebalance
from dhr_lightning.ops.refine import Refiner


def reference(sample, offset, options, tied_seed):
    keys = ([0] if offset else []) + [int(t) + offset for t in sample["tags"].nonzero()]
    cam = {}
    for tag in sample["tags"].nonzero()[:, 0].tolist():
        activation = sample["cam"][tag].double().numpy()
        cam[tag + offset] = activation / max(activation.max(), 1e-5)
    levels = [level.double().numpy() for level in sample["wss"]]
    return rebalance_reference(
        sample["mask"].numpy(), cam, sample["uss"].double().numpy(), levels, keys, offset, options, tied_seed
    )


def check_against_reference(images, offset=1, options=DEFAULT):
    result, keys, _ = run(images, offset=offset, options=options)
    for b, sample in enumerate(images):
        height, width = sample["mask"].shape
        seed, init, mask = (x[b, :height, :width].numpy() for x in (result.seed, result.init, result.mask))
        expected = reference(sample, offset, options, seed)
        h, w = sample["uss"].shape[1:]
        sure = expected["seed_margin"] > 1e-4
        np.testing.assert_array_equal(seed[sure], expected["seed"][sure])
        np.testing.assert_array_equal(init, expected["init"])
        assert {int(k) for k in keys[b][result.recovered[b]]} == expected["recovered"]
        sure = expected["margin"] > 1e-3
        np.testing.assert_array_equal(mask[sure], expected["mask"][sure])
        assert (result.mask[b, height:] == 255).all()
        assert (result.mask[b, :, width:] == 255).all()
        if options.uss:
            assert {int(k) for k in keys[b][result.active[b]]} == set(expected["heat"])
            groups = [sorted(keys[b][row].tolist()) for row in result.groups[b] if row.any()]
            assert sorted(groups) == sorted(expected["groups"])
            for k, key in enumerate(keys[b].tolist()):
                for name, maps in (("uss", result.uss_heatmaps), ("heat", result.heatmaps)):
                    target = expected[name].get(key, np.zeros((h, w)))
                    np.testing.assert_allclose(maps[b, k, :h, :w].numpy(), target, atol=2e-4)
                    assert (maps[b, k, h:] == 0).all()
    return result


@pytest.mark.parametrize("offset", [1, 0])
@pytest.mark.parametrize(
    "options",
    [
        DEFAULT,
        replace(DEFAULT, seed="all", grouping="row_upper", tau=0.3),
        replace(DEFAULT, seed="none", heatmap="softmax", temperature=0.2),
        replace(DEFAULT, seed_transport=False, wss=False, gamma=0.7),
        replace(DEFAULT, uss=False, min_share=1.0),
        replace(DEFAULT, gamma="auto"),
        replace(DEFAULT, gamma="auto", uss=False, seed="all"),
        replace(DEFAULT, final_transport=True, preserve_ignore=True),
        replace(DEFAULT, final_transport=True, final_marginal="area", epsilon=0.3),
    ],
)
def test_padded_batch_equals_slow_reference_of_each_image(options, offset):
    images = [make_image(i, offset=offset, **arguments) for i, arguments in enumerate(MIXED)]
    result = check_against_reference(images, offset, options)
    if options.uss and options.wss:
        assert result.groups.any(), "the images must exercise the supervised step"
    if options.seed != "none":
        assert result.recovered.any()


@given(
    seed=st.integers(0, 10_000),
    tags=st.sets(st.integers(0, TAGS - 1), min_size=1),
    grid=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    mask=st.sampled_from(["random", "ignore", "constant", "tiny", "stray"]),
    offset=st.sampled_from([0, 1]),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_random_image_equals_slow_reference(seed, tags, grid, mask, offset):
    check_against_reference([make_image(seed, tags=tuple(sorted(tags)), grid=grid, mask=mask, offset=offset)], offset)


@pytest.mark.parametrize("backend", ["none", "pamr", "pydensecrf"])
def test_batch_of_mixed_sizes_equals_one_by_one_with_refinement(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    images = [make_image(i, **arguments) for i, arguments in enumerate(MIXED)]
    refine = Refiner(backend=backend, dilations=(1, 3), pamr_iterations=3)
    together, _, _ = run(images, refine_seed=refine, refine_final=refine)
    for b, sample in enumerate(images):
        alone, _, _ = run([sample], refine_seed=refine, refine_final=refine)
        height, width = sample["mask"].shape
        for name in ("seed", "init", "mask"):
            same = getattr(together, name)[b, :height, :width] == getattr(alone, name)[0]
            assert same.float().mean() > 0.998, (name, b)  # float rounding may flip a tie


def test_refinements_see_the_scores_of_the_unpadded_image():
    images = [make_image(0, tags=(0, 1, 3)), make_image(1, tags=(0, 1, 3), grid=(3, 6))]
    seen = []

    def refine(image, score, present, *, valid=None):
        seen.append(score)
        return score

    run(images, refine_seed=refine, refine_final=refine)
    for b, sample in enumerate(images):
        run([sample], refine_seed=refine, refine_final=refine)
        height, width = sample["mask"].shape
        for together, alone in zip(seen[:2], seen[-2:], strict=True):
            torch.testing.assert_close(together[b, :, :height, :width], alone[0])


@given(seed=st.integers(0, 10_000), mode=st.sampled_from(["vanished", "all", "none"]), uss=st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_are_tags_background_or_ignore_and_seeded_classes_survive(seed, mode, uss):
    images = [make_image(seed + i, **arguments) for i, arguments in enumerate(MIXED)]
    options = replace(DEFAULT, seed=mode, uss=uss)
    result, keys, valid = run(images, options=options)
    for b in range(len(images)):
        allowed = {255, *keys[b][keys[b] >= 0].tolist()}
        assert set(result.mask[b].unique().tolist()) <= allowed
        assert set(result.init[b].unique().tolist()) <= allowed
        if mode != "none":
            seeded = set(result.seed[b].unique().tolist()) - {255}
            assert seeded <= set(result.init[b].unique().tolist())
    assert (result.mask[~valid] == 255).all()


def test_order_of_tags_does_not_change_the_result():
    order = torch.tensor([3, 0, 4, 1, 2])
    sample = make_image(5, tags=(0, 1, 3))
    moved = dict(sample, tags=sample["tags"][order], cam=sample["cam"][order])
    rename = torch.arange(256)
    rename[order + 1] = torch.arange(TAGS) + 1
    moved["mask"] = rename[sample["mask"]]
    first, second = run([sample])[0], run([moved])[0]
    assert first.groups.any()
    assert (rename[first.mask] == second.mask).float().mean() > 0.999


def test_ignored_pixels_are_relabelled_by_heatmaps_only():
    sample = make_image(2, tags=(0, 1))
    ignored = sample["mask"] == 255
    assert ignored.any()
    plain = run([sample], options=replace(DEFAULT, seed="none", uss=False))[0]
    assert torch.equal(plain.mask[0], sample["mask"])
    assert (run([sample])[0].mask != 255).all()
    kept = run([sample], options=replace(DEFAULT, seed="none", preserve_ignore=True))[0].mask[0]
    assert torch.equal(kept == 255, ignored)


def test_refinements_are_called_when_settings_allow():
    calls = []

    def refine(image, score, present, *, valid=None):
        calls.append(score.shape[1])
        return score

    sample = make_image(1, tags=(0, 1))
    run([sample], refine_seed=refine, refine_final=refine)
    assert calls == [4, 3]  # the seed has one more background row
    calls.clear()
    off = replace(DEFAULT, refine_seed=False, refine_final=False)
    run([sample], options=off, refine_seed=refine, refine_final=refine)
    assert calls == []


def test_a_refinement_cannot_bring_back_a_class_without_a_pixel():
    sample = make_image(0, tags=(0, 1, 3))
    sample["mask"][sample["mask"] == 2] = 0
    greedy = lambda image, score, present, *, valid=None: torch.ones_like(score).index_fill(1, torch.tensor(2), 9.0)  # noqa: E731
    result, keys, _ = run([sample], options=replace(DEFAULT, seed="none"), refine_final=greedy)
    assert keys.tolist() == [[0, 1, 2, 4]]
    assert result.active.tolist() == [[True, True, False, True]]
    assert not (result.mask == 2).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_inside_autocast(dtype):
    images = [make_image(i, **arguments) for i, arguments in enumerate(MIXED[:3])]
    exact = run(images)[0]
    low = [dict(s, uss=s["uss"].to(dtype), wss=[x.to(dtype) for x in s["wss"]], cam=s["cam"].to(dtype)) for s in images]
    with torch.autocast("cpu", dtype=dtype):
        result = run(low)[0]
    assert result.heatmaps.dtype == torch.float32
    assert (result.mask == exact.mask).float().mean() > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_cpu(monkeypatch):
    images = [make_image(i, **arguments) for i, arguments in enumerate(MIXED)]
    expected = run(images)[0]
    original = rebalance

    def on_cuda(inputs, *, settings):
        classes = ImageClasses(inputs.classes.keys.cuda(), inputs.classes.offset, inputs.classes.valid.cuda())
        moved = {name: getattr(inputs, name).cuda() for name in ("image", "mask", "cam", "uss")}
        return original(
            RebalanceInputs(classes=classes, wss=[level.cuda() for level in inputs.wss], **moved), settings=settings
        )

    monkeypatch.setitem(run.__globals__, "rebalance", on_cuda)
    result = run(images)[0]
    assert (result.mask.cpu() == expected.mask).float().mean() > 0.999
    torch.testing.assert_close(result.heatmaps.cpu(), expected.heatmaps, atol=1e-3, rtol=0)
