"""The loss of Leopart against loops written from its definition, and its assignments against POT."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.losses.leopart import Target, aligned, assign, foreground_of, overlap_boxes, view_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FIRST = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.1, 0.2, 0.9, 0.8], [0.0, 0.0, 0.3, 0.3]])
SECOND = torch.tensor([[0.25, 0.5, 1.0, 1.0], [0.3, 0.3, 0.6, 0.6], [0.5, 0.5, 1.0, 1.0]])


def test_a_point_of_the_overlap_is_the_same_point_in_both_views():
    here, there = overlap_boxes(FIRST, SECOND)
    for first, second, a, b in zip(FIRST, SECOND, here, there, strict=True):
        for corner in ((0, 1), (2, 3)):
            seen_from_first = first[:2] + a[list(corner)] * (first[2:] - first[:2])
            seen_from_second = second[:2] + b[list(corner)] * (second[2:] - second[:2])
            torch.testing.assert_close(seen_from_first, seen_from_second)
    torch.testing.assert_close(here[0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(there[1], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert (here[2, 2:] - here[2, :2]).abs().max() == 0  # they do not meet


def bilinear(plane: Tensor, y: float, x: float) -> float:
    """At a point in cells, centres at half cells, edges repeated."""
    height, width = plane.shape
    y, x = min(max(y - 0.5, 0.0), height - 1), min(max(x - 0.5, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)
    lower = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


def plain_aligned(maps: Tensor, box: Tensor) -> Tensor:
    """Means of bilinear samples in 7 x 7 bins, of one image `(D, h, w)`."""
    height, width = maps.shape[1:]
    left, top, right, bottom = (box * torch.tensor([width, height, width, height])).tolist()
    high, wide = (bottom - top) / 7, (right - left) / 7
    rows, columns = max(1, math.ceil(high)), max(1, math.ceil(wide))
    result = torch.zeros(len(maps), 7, 7)
    for channel, plane in enumerate(maps):
        for row in range(7):
            for column in range(7):
                samples = [
                    bilinear(plane, top + high * (row + (i + 0.5) / rows), left + wide * (column + (j + 0.5) / columns))
                    for i in range(rows)
                    for j in range(columns)
                ]
                result[channel, row, column] = sum(samples) / len(samples)
    return result


def target() -> Target:
    """Two images of 5 x 6 cells, 3 prototypes; the left column of the second is background."""
    shares = draw(2, 3, 5, 6).softmax(1)
    inside = torch.ones(2, 5, 6, dtype=torch.bool)
    inside[1, :, :2] = False
    return Target(shares * inside[:, None], inside, FIRST[:2])


def test_the_loss_equals_plain_loops():
    wanted, cosines = target(), draw(2, 3, 4, 4, seed=1)
    total, count = view_loss(wanted, cosines, SECOND[:2], temperature=0.5)
    here, there = overlap_boxes(FIRST[:2], SECOND[:2])
    expected, cells = 0.0, 0
    for image in range(2):
        share = plain_aligned(wanted.shares[image], here[image])
        inside = plain_aligned(wanted.foreground[image][None].float(), here[image])[0]
        logits = plain_aligned(cosines[image], there[image]) / 0.5
        for row in range(7):
            for column in range(7):
                if inside[row, column] < 1 - 1e-4:
                    continue
                cells += 1
                log = logits[:, row, column] - logits[:, row, column].logsumexp(0)
                expected -= float((share[:, row, column] * log).sum())
    assert int(count) == cells
    assert 49 < cells < 98  # part of the second overlap is background
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_its_gradient_is_that_of_finite_differences_and_the_target_has_none():
    wanted, cosines = target(), draw(2, 3, 4, 4, seed=1).double().requires_grad_()
    shares = wanted.shares.requires_grad_()
    total, _ = view_loss(wanted, cosines, SECOND[:2], temperature=0.5)
    total.backward()
    assert shares.grad is None
    for place in [(0, 0, 1, 1), (0, 2, 0, 3), (1, 1, 2, 2)]:
        moved = []
        for step in (1e-2, -1e-2):
            other = cosines.detach().clone()
            other[place] += step
            moved.append(float(view_loss(target(), other, SECOND[:2], temperature=0.5)[0]))
        assert float(cosines.grad[place]) == pytest.approx((moved[0] - moved[1]) / 2e-2, abs=5e-3)


def test_views_that_do_not_meet_count_for_nothing():
    wanted = Target(draw(1, 3, 5, 5).softmax(1), torch.ones(1, 5, 5, dtype=torch.bool), FIRST[2:])
    total, count = view_loss(wanted, draw(1, 3, 4, 4), SECOND[2:], temperature=0.1)
    assert float(total) == 0
    assert int(count) == 0
    left, right = torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([[0.5, 0.0, 1.0, 1.0]])  # an edge is no overlap
    _, count = view_loss(wanted._replace(boxes=left), draw(1, 3, 4, 4), right, temperature=0.1)
    assert int(count) == 0


def test_a_whole_map_is_seen_from_corner_to_corner():
    ramp = ((torch.arange(14) + 0.5) / 14).expand(1, 1, 14, 14)
    found = aligned(ramp, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))[0, 0]
    torch.testing.assert_close(found, ((torch.arange(7) + 0.5) / 7).expand(7, 7))


def test_the_foreground_is_the_fewest_cells_that_hold_the_mass():
    attention = torch.tensor([[[0.4, 0.1, 0.05], [0.3, 0.1, 0.05]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    found = foreground_of(attention, mass=0.6, blur=0)
    assert found[0].tolist() == [[True, False, False], [True, False, False]]
    assert int(found[1].sum()) == 4  # the fourth of six equal cells is the first to pass 60 %
    assert torch.equal(foreground_of(0.01 * attention, mass=0.6, blur=0), found)  # shares
    assert foreground_of(attention, mass=1.0, blur=0).all()
    spike = torch.zeros(1, 9, 9)
    spike[0, 4, 4] = 1
    blurred = foreground_of(spike, mass=0.9, blur=0.6)[0]
    assert blurred[4, 4]
    assert int(blurred.sum()) > 1
    assert int(foreground_of(spike, mass=0.9, blur=0)[0].sum()) == 1


def test_assignments_use_all_prototypes_alike_as_pot_finds_them():
    ot = pytest.importorskip("ot")
    scores = torch.nn.functional.normalize(draw(40, 6), dim=1)
    shares = assign(scores, epsilon=0.2)
    torch.testing.assert_close(shares.sum(1), torch.ones(40))
    rows, columns = np.full(40, 1 / 40), np.full(6, 1 / 6)
    plan = ot.sinkhorn(rows, columns, -scores.numpy().astype(np.float64), 0.2, numItermax=10_000, stopThr=1e-12)
    np.testing.assert_allclose(shares.numpy(), plan / plan.sum(1, keepdims=True), atol=5e-3)
    assert (shares.sum(0) / 40 - 1 / 6).abs().max() < 5e-3
    assert (scores.softmax(1).argmax(1).bincount(minlength=6) / 40 - 1 / 6).abs().max() > 5e-2  # not so by itself
