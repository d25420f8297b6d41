import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.losses.stego import correspondence_loss, sample_points

BATCH, CHANNELS, DIMENSION, POINTS = 2, 6, 4, 5


def unit(*shape: int, seed: int) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(values, dim=1)


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features = unit(BATCH, CHANNELS, POINTS, seed=0), unit(BATCH, CHANNELS, POINTS, seed=1)
    return *features, unit(BATCH, DIMENSION, POINTS, seed=2), unit(BATCH, DIMENSION, POINTS, seed=3)


def plain_loss(features: Tensor, others: Tensor, code: Tensor, other_code: Tensor, shift: float) -> float:
    similarity = [
        [[float(features[b, :, p] @ others[b, :, q]) for q in range(POINTS)] for p in range(POINTS)]
        for b in range(BATCH)
    ]
    overall = sum(value for image in similarity for row in image for value in row) / (BATCH * POINTS**2)
    total = 0.0
    for b in range(BATCH):
        for p in range(POINTS):
            middle = sum(similarity[b][p]) / POINTS
            for q in range(POINTS):
                agreement = max(0.0, float(code[b, :, p] @ other_code[b, :, q]))
                total -= agreement * (similarity[b][p][q] - middle + overall - shift)
    return total / (BATCH * POINTS**2)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.12, 1.0])
def test_the_loss_equals_a_plain_loop(tensors: tuple[Tensor, Tensor, Tensor, Tensor], shift: float):
    assert float(correspondence_loss(*tensors, shift=shift)) == pytest.approx(plain_loss(*tensors, shift), abs=1e-12)


def test_the_gradient_of_both_codes_is_right(tensors: tuple[Tensor, Tensor, Tensor, Tensor]):
    features, others, *codes = tensors
    codes = [code.requires_grad_() for code in codes]
    assert torch.autograd.gradcheck(lambda a, b: correspondence_loss(features, others, a, b, shift=0.12), codes)


def test_no_gradient_flows_into_the_features(tensors: tuple[Tensor, Tensor, Tensor, Tensor]):
    features, others, code, other_code = (tensor.requires_grad_() for tensor in tensors)
    correspondence_loss(features, others, code, other_code, shift=0.1).backward()
    assert features.grad is None
    assert others.grad is None
    assert code.grad is not None
    assert code.grad.abs().max() > 0


def test_a_step_pulls_corresponding_points_together_and_pushes_others_apart():
    features = torch.eye(2, dtype=torch.float64)[None].repeat(1, 1, 1)  # two points with nothing in common
    code = F.normalize(torch.tensor([[[1.0, 0.6], [0.5, 1.0]]], dtype=torch.float64), dim=1).requires_grad_()
    loss = correspondence_loss(features, features, code, code, shift=0.4)
    loss.backward()
    assert code.grad is not None
    moved = F.normalize(code.detach() - 0.1 * code.grad, dim=1)
    before, after = ((c.transpose(1, 2) @ c)[0, 0, 1] for c in (code.detach(), moved))
    assert after < before
    assert correspondence_loss(features, features, moved, moved, shift=0.4) < loss


def test_a_larger_shift_costs_the_agreement_of_the_codes(tensors: tuple[Tensor, Tensor, Tensor, Tensor]):
    _, _, code, other_code = tensors
    agreement = (code.transpose(1, 2) @ other_code).clamp(min=0).mean()
    difference = correspondence_loss(*tensors, shift=1.0) - correspondence_loss(*tensors, shift=0.25)
    torch.testing.assert_close(difference, 0.75 * agreement)


def test_points_at_cells_are_the_unit_vectors_of_these_cells():
    maps = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]]])
    expected = torch.stack(
        [maps[0, :, 0, 0], maps[0, :, 0, 4], maps[0, :, 3, 0], maps[0, :, 3, 4], maps[0, :, 0, 2]], 1
    )
    torch.testing.assert_close(sample_points(maps, corners)[0], F.normalize(expected, dim=0))


def test_points_between_cells_are_interpolated_and_every_image_has_its_own():
    maps = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[2.0, 4.0]]]])
    points = sample_points(maps.half(), torch.tensor([[[0.0, 0.0], [-1.0, 0.0]], [[0.5, 0.0], [1.0, 0.0]]]))
    assert points.dtype == torch.float32
    assert points.shape == (2, 2, 2)
    torch.testing.assert_close(points, torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]))


def test_a_cell_without_features_gives_zero_not_nan():
    assert sample_points(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2)).abs().max() == 0
