import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.classifier import masked_mean
from dhr_lightning.ops.tag_pooling import POOLINGS, TagPooling, pool_tags, tag_pooling

EVERY = [TagPooling(name) for name in POOLINGS]


def random_case(seed: int, *, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 5, 6, generator=generator, dtype=dtype) * 3
    return logits, torch.rand(3, 5, 6, generator=generator) < 0.7


def plain(values: list[float], weights: list[float], pooling: TagPooling) -> float:
    """One class of one image, cell by cell."""
    pairs = sorted(((v, w) for v, w in zip(values, weights, strict=True) if w > 0), reverse=True)
    total = sum(w for _, w in pairs)
    if not pairs:
        return 0.0
    if pooling.name == "mean":
        return sum(v * w for v, w in pairs) / total
    if pooling.name == "topk":
        budget = left = max(pooling.share * total, min(total, 1.0))
        pooled = 0.0
        for value, weight in pairs:
            pooled += value * min(weight, left)
            left -= min(weight, left)
        return pooled / budget
    if pooling.name == "logsumexp":
        r = pooling.sharpness
        return math.log(sum(w * math.exp(r * v) for v, w in pairs) / total) / r
    p = pooling.exponent
    q = (sum(w / (1 + math.exp(-v)) ** p for v, w in pairs) / total) ** (1 / p)
    return math.log(q / (1 - q))


def test_each_pooling_by_hand():
    logits = torch.tensor([0.0, math.log(3), -1.0, 2.0]).view(1, 1, 2, 2)
    valid = torch.tensor([[[True, True], [False, False]]])
    assert pool_tags(logits, valid, TagPooling("mean")).item() == pytest.approx(math.log(3) / 2)
    assert pool_tags(logits, valid, TagPooling("topk", share=0.5)).item() == pytest.approx(math.log(3))
    assert pool_tags(logits, None, TagPooling("topk", share=0.5)).item() == pytest.approx((2 + math.log(3)) / 2)
    third = (2 + math.log(3) / 2) / 1.5  # one cell and a half
    assert pool_tags(logits, None, TagPooling("topk", share=0.375)).item() == pytest.approx(third)
    assert pool_tags(logits, None, TagPooling("topk", share=0.01)).item() == 2
    assert pool_tags(logits, valid, TagPooling("logsumexp", sharpness=1)).item() == pytest.approx(math.log(2))
    q = math.sqrt((0.25 + 0.5625) / 2)  # probabilities 1/2 and 3/4
    generalised = pool_tags(logits, valid, TagPooling("generalised_mean", exponent=2)).item()
    assert generalised == pytest.approx(math.log(q / (1 - q)))


@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.01, 1),
    sharpness=st.floats(0.01, 20),
    exponent=st.floats(0.1, 20),
    name=st.sampled_from(POOLINGS),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_pooling_equals_a_sum_over_the_cells(
    seed: int, share: float, sharpness: float, exponent: float, name: str
):
    pooling = TagPooling(name, share, sharpness, exponent)
    logits, valid = random_case(seed)
    part = valid * torch.rand(valid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for weight in (valid, part):
        found = pool_tags(logits, weight, pooling)
        for image in range(3):
            weights = weight[image].double().flatten().tolist()
            expected = [plain(maps.flatten().tolist(), weights, pooling) for maps in logits[image]]
            assert found[image].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
def test_the_order_of_the_cells_and_padding_change_nothing(pooling: TagPooling):
    logits, valid = random_case(1)
    found = pool_tags(logits, valid, pooling)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    moved = pool_tags(logits.flatten(2)[..., order].view_as(logits), valid.flatten(1)[:, order].view_as(valid), pooling)
    torch.testing.assert_close(moved, found)
    padded = torch.nn.functional.pad(logits, (0, 3, 0, 2), value=torch.nan)
    torch.testing.assert_close(pool_tags(padded, torch.nn.functional.pad(valid, (0, 3, 0, 2)), pooling), found)
    torch.testing.assert_close(pool_tags(logits[1:2], valid[1:2], pooling), found[1:2])
    whole = torch.ones_like(valid)
    torch.testing.assert_close(pool_tags(logits, None, pooling), pool_tags(logits, whole, pooling))


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
def test_a_constant_map_pools_to_its_value(pooling: TagPooling):
    for value in (-30.0, -2.0, 0.0, 5.0, 40.0):
        logits = torch.full((1, 2, 3, 3), value)
        assert pool_tags(logits, None, pooling).tolist() == [pytest.approx([value] * 2, rel=1e-5)]


def test_limits_are_the_mean_and_the_maximum():
    logits, valid = random_case(2, dtype=torch.float32)
    mean = pool_tags(logits, valid, TagPooling("mean"))
    highest = logits.masked_fill(~valid[:, None], -torch.inf).amax((2, 3))
    flat = pool_tags(logits, valid, TagPooling("logsumexp", sharpness=1e-6))
    torch.testing.assert_close(flat, mean, atol=1e-4, rtol=1e-4)
    sharp = pool_tags(logits, valid, TagPooling("logsumexp", sharpness=1e4))
    torch.testing.assert_close(sharp, highest, atol=1e-3, rtol=0)
    torch.testing.assert_close(pool_tags(logits, valid, TagPooling("topk", share=1.0)), mean)
    torch.testing.assert_close(pool_tags(logits, valid, TagPooling("topk", share=1e-3)), highest)
    sharp = pool_tags(logits, valid, TagPooling("generalised_mean", exponent=1e6))
    torch.testing.assert_close(sharp, highest, atol=1e-2, rtol=0)
    probability = (logits.sigmoid() * valid[:, None]).sum((2, 3)) / valid.sum((1, 2))[:, None]
    torch.testing.assert_close(
        pool_tags(logits, valid, TagPooling("generalised_mean", exponent=1.0)).sigmoid(), probability
    )


def test_sharper_poolings_lie_between_mean_and_maximum_in_order():
    logits, valid = random_case(3)
    for name, field, values in (
        ("logsumexp", "sharpness", (0.1, 1.0, 5.0)),
        ("generalised_mean", "exponent", (0.5, 1.0, 4.0)),
        ("topk", "share", (0.9, 0.5, 0.1)),
    ):
        pooled = [pool_tags(logits, valid, TagPooling(name, **{field: value})) for value in values]
        for lower, higher in pairwise(pooled):
            assert (higher > lower).all()


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
def test_gradients_are_right_and_skip_padding(pooling: TagPooling):
    logits, valid = random_case(4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool_tags(x, valid, pooling), (logits,))
    (gradient,) = torch.autograd.grad(pool_tags(logits, valid, pooling).sum(), logits)
    assert (gradient.masked_select(~valid[:, None]) == 0).all()
    torch.testing.assert_close(gradient.sum((2, 3)) > 0, torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
@pytest.mark.parametrize("size", [80.0, 1e4])
def test_large_logits_give_finite_values_and_gradients(pooling: TagPooling, size: float):
    logits = torch.tensor([-size, size, 0.0, size]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    logits[:, 1] = -size
    logits.requires_grad_()
    pooled = pool_tags(logits, None, pooling)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert logits.grad.isfinite().all()
    assert pooled[0, 1].item() == pytest.approx(-size, rel=1e-5)


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
def test_an_image_without_valid_cells_gives_zero(pooling: TagPooling):
    logits, valid = random_case(5)
    valid[1] = False
    logits.requires_grad_()
    pooled = pool_tags(logits, valid, pooling)
    pooled.sum().backward()
    assert pooled[1].tolist() == [0.0] * 4
    assert logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all()


@pytest.mark.parametrize("pooling", EVERY, ids=POOLINGS)
def test_half_precision_pools_in_float32(pooling: TagPooling):
    logits, valid = random_case(6, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_tags(logits, valid, pooling)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pool_tags(logits.float(), valid, pooling))


def test_the_mean_is_that_of_the_classifier_to_the_last_bit():
    logits, _ = random_case(7, dtype=torch.float32)
    pixels = torch.zeros(3, 40, 48, dtype=torch.bool)
    pixels[0], pixels[1, 3:, :17], pixels[2, :, 40:] = True, True, True
    shares = torch.nn.functional.adaptive_avg_pool2d(pixels[:, None].float(), (5, 6))[:, 0]
    assert torch.equal(pool_tags(logits, shares, TagPooling()), masked_mean(logits, pixels))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "max"}, "Expected `name` to be one of mean, topk, logsumexp, generalised_mean, but got 'max'"),
        ({"share": 0.0}, r"Expected `share` in \(0, 1\], but got 0.0"),
        ({"share": 1.1}, r"Expected `share` in \(0, 1\], but got 1.1"),
        ({"sharpness": 0.0}, "Expected `sharpness` > 0, but got 0.0"),
        ({"exponent": -1.0}, "Expected `exponent` > 0, but got -1.0"),
    ],
)
def test_wrong_settings_are_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TagPooling(**wrong)
    with pytest.raises(ConfigError, match=f"model.init_args.pooling is .*{message}"):
        tag_pooling(**wrong)


def test_settings_of_a_task_become_a_pooling():
    assert tag_pooling() == TagPooling()
    assert tag_pooling(name="topk", share=0.3) == TagPooling("topk", share=0.3)
    with pytest.raises(ConfigError, match=r"Unknown pooling\.top\. Known: name, share, sharpness, exponent\."):
        tag_pooling(top=3)
    with pytest.raises(ConfigError, match=r"model\.init_args\.pooling is"):
        tag_pooling(share="much")


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"Expected `logits` of shape \(B, T, h, w\), but got \(2, 3\)"):
        pool_tags(torch.zeros(2, 3), None, TagPooling())
    with pytest.raises(ValueError, match=r"Expected `valid` of shape .* = \(1, 3, 4\), but got \(1, 4, 3\)"):
        pool_tags(torch.zeros(1, 2, 3, 4), torch.ones(1, 4, 3), TagPooling())
