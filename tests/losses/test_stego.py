from math import floor, sqrt

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.stego import (
    PRESETS,
    Draw,
    Maps,
    StegoSettings,
    correspondence_loss,
    draw_pairs,
    random_partners,
    sample_points,
    stego_loss,
    stego_settings,
)
from dhr_lightning.models.stego import StegoHead

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


def plain_point(values: Tensor, x: float, y: float) -> list[float]:
    """Bilinear value of one map `(C, h, w)` at a point in [-1, 1], corners at the middles of the outermost cells."""
    height, width = values.shape[-2:]
    column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
    left, top = min(floor(column), width - 2), min(floor(row), height - 2)
    right_share, lower_share = column - left, row - top
    point = [
        float(
            (values[c, top, left] * (1 - right_share) + values[c, top, left + 1] * right_share) * (1 - lower_share)
            + (values[c, top + 1, left] * (1 - right_share) + values[c, top + 1, left + 1] * right_share) * lower_share
        )
        for c in range(len(values))
    ]
    length = sqrt(sum(value**2 for value in point))
    return [value / length for value in point]


def plain_pair_loss(one: Maps, other: Maps, points: Tensor, other_points: Tensor, shift: float) -> float:
    """Loss of one kind of pairs over a batch, and nothing but loops."""
    cosines, agreements = [], []
    for b in range(len(points)):
        first, second = (
            [[plain_point(values[b], float(x), float(y)) for x, y in where[b]] for values in maps]
            for maps, where in ((one, points), (other, other_points))
        )
        for table, left, right in ((cosines, first[0], second[0]), (agreements, first[1], second[1])):
            table.append([[sum(a * c for a, c in zip(p, q, strict=True)) for q in right] for p in left])
    count = points.shape[1]
    overall = sum(value for image in cosines for row in image for value in row) / (len(points) * count**2)
    total = 0.0
    for image, codes in zip(cosines, agreements, strict=True):
        for row, code_row in zip(image, codes, strict=True):
            middle = sum(row) / count
            for cosine, agreement in zip(row, code_row, strict=True):
                total += -max(0.0, agreement) * (cosine - middle + overall - shift)
    return total / (len(points) * count**2)


def plain_stego_loss(anchors: Maps, neighbours: Maps, draw: Draw, settings: StegoSettings) -> float:
    intra = plain_pair_loss(anchors, anchors, draw.points, draw.points, settings.shifts[0])
    inter = plain_pair_loss(anchors, neighbours, draw.points, draw.other_points, settings.shifts[1])
    negative = [
        plain_pair_loss(
            anchors, Maps(*(maps[row] for maps in anchors)), draw.points, draw.other_points, settings.shifts[2]
        )
        for row in draw.negatives
    ]
    parts = (intra, inter, sum(negative) / len(negative))
    return sum(weight * part for weight, part in zip(settings.weights, parts, strict=True))


def maps_of(seed: int, *, batch: int = 4) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    return Maps(torch.randn(batch, 6, 3, 4, generator=generator), torch.randn(batch, 5, 3, 4, generator=generator))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_of_all_pairs_equals_plain_loops(preset: str):
    settings = stego_settings(preset, points=2, negatives=3)
    torch.manual_seed(0)
    anchors, neighbours, draw = maps_of(0), maps_of(1), draw_pairs(4, settings)
    result = stego_loss(anchors, neighbours, draw, settings)
    expected = plain_stego_loss(anchors, neighbours, draw, settings)
    assert float(result.loss) == pytest.approx(expected, abs=1e-6)
    swapped = plain_stego_loss(neighbours, anchors, draw, settings)
    assert abs(float(result.loss) - swapped) > 1e-4  # the comparison can fail


def test_a_step_pulls_the_code_of_a_neighbour_and_pushes_that_of_a_negative():
    settings = StegoSettings(shifts=(0.5, 0.5, 0.5), weights=(0.0, 1.0, 1.0), points=3, negatives=1)
    features = torch.eye(2)[:, :, None, None].expand(2, 2, 2, 2)  # neighbours are alike, the two anchors not at all
    codes = torch.tensor([[1.0, 0.3], [0.3, 1.0]])[:, :, None, None].repeat(1, 1, 2, 2)
    neighbours = codes.flip(1).contiguous()
    before = F.cosine_similarity(codes, neighbours).mean(), F.cosine_similarity(codes[0], codes[1], dim=0).mean()
    codes.requires_grad_(), neighbours.requires_grad_()
    torch.manual_seed(0)
    stego_loss(Maps(features, codes), Maps(features, neighbours), draw_pairs(2, settings), settings).loss.backward()
    moved, moved_neighbours = ((maps - 0.1 * maps.grad).detach() for maps in (codes, neighbours))
    assert F.cosine_similarity(codes.detach(), moved_neighbours).mean() > before[0]
    assert F.cosine_similarity(moved[0], moved[1], dim=0).mean() < before[1]


def test_cosines_of_pairs_are_those_of_sampled_codes():
    settings = stego_settings(points=2, negatives=2)
    torch.manual_seed(0)
    anchors, neighbours, draw = maps_of(0), maps_of(1), draw_pairs(4, settings)
    first = sample_points(anchors.codes, draw.points)
    partners = [
        [first],
        [sample_points(neighbours.codes, draw.other_points)],
        [sample_points(anchors.codes[row], draw.other_points) for row in draw.negatives],
    ]
    expected = [
        torch.stack([torch.einsum("bdp,bdq->bpq", first, other).mean() for other in others]).mean()
        for others in partners
    ]
    torch.testing.assert_close(stego_loss(anchors, neighbours, draw, settings).cosines, torch.stack(expected))


@pytest.mark.parametrize("batch", [2, 3, 7, 16])
def test_a_negative_is_never_the_image_itself_and_every_image_is_one_once(batch: int):
    torch.manual_seed(batch)
    partners = random_partners(batch, 200)
    assert partners.shape == (200, batch)
    assert not (partners == torch.arange(batch)).any()
    assert (partners.sort(1).values == torch.arange(batch)).all()


def test_every_other_image_is_equally_likely_as_a_negative():
    torch.manual_seed(0)
    partners = random_partners(5, 8000)
    for place in range(5):
        shares = torch.bincount(partners[:, place], minlength=5) / 8000
        others = [float(shares[image]) for image in range(5) if image != place]
        assert others == pytest.approx([0.25] * 4, abs=0.025)


def test_there_is_no_negative_in_a_batch_of_one():
    with pytest.raises(ValueError, match="`batch` >= 2, for a negative is another image, but got 1"):
        random_partners(1, 5)


def test_a_draw_has_points_over_the_whole_crop_and_five_negatives():
    torch.manual_seed(0)
    draw = draw_pairs(16, stego_settings())
    assert draw.points.shape == draw.other_points.shape == (16, 121, 2)
    assert draw.negatives.shape == (5, 16)
    assert not torch.equal(draw.points, draw.other_points)
    assert len({tuple(row.tolist()) for row in draw.negatives}) == 5
    for points in (draw.points, draw.other_points):
        assert -1 <= points.min() < -0.99
        assert 0.99 < points.max() <= 1
        assert points.mean((0, 1)).abs().max() < 0.05


def test_the_default_preset_is_the_published_row_of_its_backbone():
    settings = stego_settings()
    assert settings == PRESETS["cocostuff_vit_b"]
    assert (settings.shifts, settings.weights) == ((0.12, 0.2, 1.0), (0.1, 1.0, 0.15385))
    small = stego_settings("cocostuff_vit_s", points=5, shifts=(0.1, 0.2, 0.3))
    assert (small.shifts, small.weights, small.points) == ((0.1, 0.2, 0.3), (0.67, 0.25, 0.63), 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "voc"}, "stego.preset to be one of iaroa_vit_s, .*, but got 'voc'"),
        ({"shift": 1}, "Unknown stego.shift. Known: preset, shifts, weights, points"),
        ({"shifts": (0.1, 0.2)}, r"stego.shifts to be three numbers \(intra, inter, negative\), but got \(0.1, 0.2\)"),
        ({"negatives": 0}, "stego.negatives >= 1, but got 0"),
        ({"crop_ratio": 0.0}, r"stego.crop_ratio in \(0, 1\], but got 0.0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        stego_settings(**settings)


@pytest.mark.parametrize(
    ("preset", "weights", "shifts"),
    [  # as published: negative, inter, intra
        ("iaroa_vit_s", (0.63, 0.25, 0.67), (0.46, 0.12, 0.18)),
        ("potsdam_vit_s", (0.63, 0.25, 0.67), (0.46, 0.02, 0.08)),
        ("cocostuff_vit_s", (0.63, 0.25, 0.67), (0.66, 0.02, 0.08)),
        ("cocostuff_vit_s_older", (0.63, 0.25, 0.67), (0.16, 0.02, 0.08)),
        ("cocostuff_vit_b", (0.15385, 1.0, 0.1), (1.0, 0.2, 0.12)),
        ("cityscapes_vit_b", (0.90588, 0.57745, 1.0), (0.31361, 0.17543, 0.45828)),
        ("cityscapes_older", (0.72, 0.18, 0.46), (0.25, 0.2, 0.25)),
    ],
)
def test_presets_are_the_published_rows(preset: str, weights: tuple[float, ...], shifts: tuple[float, ...]):
    assert stego_settings(preset).weights == weights[::-1]
    assert stego_settings(preset).shifts == shifts[::-1]
    assert stego_settings(preset).points == 11


def halves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features `(B, 16, 8, 8)` that hardly differ between two classes, which share each image, and the classes."""
    classes = torch.zeros(count, 8, 8, dtype=torch.long)
    for image, cut in enumerate(torch.randint(2, 7, (count,), generator=generator).tolist()):
        classes[image, :, cut:] = 1
        classes[image] = classes[image] if image % 2 else 1 - classes[image].T
    shared, own = torch.eye(16)[0], torch.eye(16)[1:3]
    features = 3 * shared + own[classes]  # (B, 8, 8, 16)
    return (features + 0.25 * torch.randn(features.shape, generator=generator)).permute(0, 3, 1, 2), classes


def separation(maps: Tensor, classes: Tensor) -> float:
    """Mean cosine of cells of one class less that of cells of different ones, over all images."""
    cells, labels = F.normalize(maps.movedim(1, -1).flatten(0, 2), dim=1), classes.flatten()
    cosines, same = cells @ cells.T, labels[:, None] == labels[None]
    return float(cosines[same].mean() - cosines[~same].mean())


def test_the_head_separates_what_the_cosine_of_the_features_does_not():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    features, classes = halves(8, generator)
    head = StegoHead(16, 4)
    settings = StegoSettings(weights=(1.0, 1.0, 1.0), shifts=(0.9, 0.9, 0.9), points=8)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    before, untrained = separation(features, classes), separation(head.eval()(features).detach(), classes)
    for _ in range(150):
        anchors = Maps(features, head.train()(features))
        others = torch.randperm(len(features))
        neighbours = Maps(features[others], anchors.codes[others])
        loss = stego_loss(anchors, neighbours, draw_pairs(len(features), settings), settings).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen, their_classes = halves(8, generator)
    found = separation(head.eval()(unseen).detach(), their_classes)
    assert before < 0.15
    assert untrained < 0.3
    assert found > 0.8
