"""Losses of CAUSE against loops written from its equations."""

import math

import pytest
import torch
from torch import Tensor

from dhr_lightning.losses.cause import ConceptBank, Contrast, ContrastSettings, contrast_loss, modularity_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def plain_modularity(tokens: Tensor, codes: Tensor, temperature: float) -> float:
    """Of one image `(P, F)`, pair by pair."""
    count = len(tokens)
    edge = [[max(0.0, cosine(tokens[p], tokens[q])) if p != q else 0.0 for q in range(count)] for p in range(count)]
    degree = [sum(row) for row in edge]
    total, result = sum(degree), 0.0
    for p in range(count):
        for q in range(count):
            shared = max(
                math.tanh(max(0.0, cosine(tokens[p], code)) * max(0.0, cosine(tokens[q], code)) / temperature)
                for code in codes
            )
            result += (edge[p][q] / total - degree[p] * degree[q] / total**2) * shared
    return -result


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_modularity_is_that_of_a_loop_over_pairs(chunk: int, temperature: float):
    tokens, codes = draw(2, 7, 5), draw(8, 5, seed=1)
    expected = sum(plain_modularity(one, codes, temperature) for one in tokens) / 2
    assert float(modularity_loss(tokens, codes, temperature=temperature, chunk=chunk)) == pytest.approx(
        expected, abs=1e-6
    )


def test_modularity_teaches_the_codes_and_not_the_tokens():
    tokens, codes = draw(2, 6, 4).requires_grad_(), draw(5, 4, seed=1).double().requires_grad_()
    modularity_loss(tokens, codes, chunk=2).backward()
    assert tokens.grad is None
    step = 1e-3
    for place in ((0, 1), (3, 2)):  # against finite differences
        moved = [codes.detach().clone(), codes.detach().clone()]
        for sign, one in zip((1, -1), moved, strict=True):
            one[place] += sign * step
        high, low = (float(modularity_loss(tokens, one)) for one in moved)
        assert float(codes.grad[place]) == pytest.approx((high - low) / (2 * step), abs=2e-3)


def test_codes_of_two_groups_win_over_one_code_for_all():
    group = torch.tensor([[1.0, 0.05, 0], [0.05, 1.0, 0]])
    tokens = group.repeat_interleave(4, 0)[None] + 0.01 * draw(1, 8, 3)
    apart, same = group, torch.tensor([[0.7, 0.7, 0], [0.7, 0.7, 0.01]])
    assert float(modularity_loss(tokens, apart)) < float(modularity_loss(tokens, same)) - 0.05
    assert float(modularity_loss(torch.eye(3)[None], apart)) == 0  # tokens without any similarity


def plain_contrast(
    anchors: Tensor, codes: Tensor, others: Contrast, likeness: Tensor, settings: ContrastSettings, first: int | None
) -> float | None:
    """Of one image `(P, D)`; `first` is the place of its first token among the others, where they hold it."""
    losses = []
    for i in range(len(anchors)):
        seen = [j for j in range(len(others.codes)) if first is None or j != first + i]
        alike = {j: float(likeness[codes[i], others.codes[j]]) for j in seen}
        logit = {j: cosine(anchors[i], others.vectors[j]) / settings.temperature for j in seen}
        positive = [j for j in seen if alike[j] > settings.positive]
        counted = [j for j in seen if alike[j] > settings.positive or alike[j] < settings.negative]
        for j in positive:
            losses.append(-logit[j] + math.log(sum(math.exp(logit[k]) for k in counted)))
    return sum(losses) / len(losses) if losses else None


@pytest.mark.parametrize("own", [True, False])
def test_contrast_is_that_of_a_loop_over_pairs(own: bool):
    settings = ContrastSettings()
    table = torch.nn.functional.normalize(draw(4, 3, seed=2), dim=1)
    likeness = table @ table.T
    codes = torch.tensor([[0, 1, 1, 2], [3, 0, 2, 2]])
    anchors = draw(2, 4, 6)
    others = (
        Contrast(draw(8, 6, seed=4), codes.flatten())
        if own
        else Contrast(draw(5, 6, seed=5), torch.tensor([0, 1, 2, 3, 3]))
    )
    found, known = contrast_loss(anchors, codes, others, likeness, settings=settings, own=own)
    for image in range(2):
        expected = plain_contrast(anchors[image], codes[image], others, likeness, settings, 4 * image if own else None)
        assert bool(known[image]) == (expected is not None)
        assert float(found[image]) == pytest.approx(expected or 0.0, abs=1e-4)


def test_an_image_without_a_positive_is_left_out():
    likeness = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    anchors, others = draw(2, 2, 3).requires_grad_(), Contrast(draw(2, 3, seed=1), torch.tensor([0, 0]))
    found, known = contrast_loss(anchors, torch.tensor([[0, 1], [1, 1]]), others, likeness, settings=ContrastSettings())
    assert known.tolist() == [True, False]
    assert float(found[1].detach()) == 0
    found.sum().backward()
    assert bool(torch.isfinite(anchors.grad).all())
    assert float(anchors.grad[1].abs().sum()) == 0


def test_a_pair_between_the_bounds_does_not_count():
    likeness = torch.tensor([[1.0, 0.2], [0.2, 1.0]])
    anchors, codes = draw(1, 1, 3), torch.tensor([[0]])
    vectors = draw(2, 3, seed=1)
    settings = ContrastSettings()
    with_it, _ = contrast_loss(anchors, codes, Contrast(vectors, torch.tensor([0, 1])), likeness, settings=settings)
    without, _ = contrast_loss(anchors, codes, Contrast(vectors[:1], torch.tensor([0])), likeness, settings=settings)
    assert float(with_it) == pytest.approx(float(without))


def test_the_bank_keeps_the_last_vectors_of_each_code():
    bank, kept = ConceptBank(3, 4, 2), {code: [] for code in range(3)}
    generator = torch.Generator().manual_seed(0)
    assert bank.draw(10) is None
    for _ in range(6):
        codes = torch.randint(3, (7,), generator=generator)
        codes[codes == 1] = 0  # no vector of this code ever comes
        vectors = torch.randn(7, 2, generator=generator)
        bank.add(vectors, codes)
        for vector, code in zip(vectors, codes.tolist(), strict=True):
            kept[code] = [*kept[code], vector / vector.norm()][-4:]
        drawn = bank.draw(100)
        for code, expected in kept.items():
            found = drawn.vectors[drawn.codes == code]
            assert len(found) == len(expected)
            if expected:
                distance = torch.cdist(torch.stack(expected), found)
                assert float(distance.amin(1).max()) < 0.01  # bfloat16
                assert len(distance.argmin(1).unique()) == len(expected)
    assert len(bank.draw(3).codes) == 3
