import math

import pytest
import torch

from dhr_lightning.losses.soft_labels import soft_cross_entropy
from dhr_lightning.ops.soft_labels import class_shares


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 9, 11), generator=generator)]
    return logits, *class_shares(mask, 3, grid=(4, 5))


def test_it_equals_a_sum_over_cells_and_classes():
    logits, shares, weight = random_case()
    total = area = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                norm = math.log(sum(math.exp(v) for v in logits[b, :, y, x].tolist()))
                loss = -sum(float(shares[b, c, y, x]) * (float(logits[b, c, y, x]) - norm) for c in range(3))
                total, area = total + float(weight[b, y, x]) * loss, area + float(weight[b, y, x])
    assert soft_cross_entropy(logits, shares, weight).item() == pytest.approx(total / area, rel=1e-6)


def test_whole_cells_give_the_usual_cross_entropy():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 4, 5), generator=torch.Generator().manual_seed(2))]
    expected = torch.nn.functional.cross_entropy(logits, mask, ignore_index=255)
    torch.testing.assert_close(soft_cross_entropy(logits, *class_shares(mask, 3, grid=(4, 5))), expected)


def test_gradients_are_right_and_vanish_at_the_shares():
    logits, shares, weight = random_case()
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, shares, weight), (logits.requires_grad_(),))
    exact = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
    best = exact.log().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(best, exact, torch.ones(1, 1, 1)), best)
    torch.testing.assert_close(gradient, torch.zeros_like(best))


def test_nothing_labelled_gives_zero_and_no_gradient():
    logits = torch.randn(1, 2, 3, 3).requires_grad_()
    loss = soft_cross_entropy(logits, *class_shares(torch.full((1, 6, 6), 255), 2, grid=(3, 3)))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_half_precision_is_summed_in_float32():
    logits, shares, weight = random_case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_cross_entropy(logits.bfloat16(), shares, weight)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_cross_entropy(logits.bfloat16().float(), shares, weight))


def test_wrong_shapes_are_named():
    logits = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"Expected `logits` of shape \(B, C, h, w\), but got \(2, 3\)"):
        soft_cross_entropy(torch.zeros(2, 3), logits, logits)
    with pytest.raises(ValueError, match=r"Expected `shares` of shape .* \(1, 2, 3, 4\), but got \(1, 3, 3, 4\)"):
        soft_cross_entropy(logits, torch.zeros(1, 3, 3, 4), torch.ones(1, 3, 4))
    with pytest.raises(ValueError, match=r"Expected `weight` of shape .* \(1, 3, 4\), but got \(1, 4, 3\)"):
        soft_cross_entropy(logits, logits, torch.ones(1, 4, 3))
