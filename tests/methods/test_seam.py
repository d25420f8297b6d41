"""SEAM against slow references, and where its gradients go."""

import pytest
import torch
from torch import Tensor

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.seam.losses import View, lowest_activation, seam_losses
from dhr_lightning.methods.seeds.seam.network import strongest_maps
from dhr_lightning.ops.pixel_correlation import pixel_correlation
from tests.task_samples import make_batch, make_task, training_loss

SIZE = (5, 6)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("repeat", "block"), [(1, 4096), (2, 7), (3, 30)])
def test_correlation_is_the_average_over_similar_pixels(generator: torch.Generator, repeat: int, block: int):
    maps, embedding = (torch.randn(2, size, *SIZE, generator=generator) for size in (3, 4))
    valid = torch.rand(2, *SIZE, generator=generator) > 0.3
    found = pixel_correlation(maps, embedding, valid=valid, repeat=repeat, block=block)
    for image in range(2):
        unit = embedding[image].flatten(1)
        unit = unit / (unit.norm(dim=0) + 1e-5)
        weights = torch.zeros(30, 30)
        for i in range(30):
            for j in range(30):
                if valid[image].flatten()[i]:
                    weights[i, j] = max(0.0, float(unit[:, i] @ unit[:, j]))
        weights = weights / (weights.sum(0) + 1e-5)
        assert torch.allclose(weights.sum(0), torch.ones(30), atol=1e-3)
        expected = maps[image].flatten(1)
        for _ in range(repeat):
            expected = expected @ weights
        assert torch.allclose(found[image].flatten(1), expected, atol=1e-5)


def test_correlation_keeps_constants_and_needs_equal_grids():
    constant = pixel_correlation(torch.full((1, 2, *SIZE), 0.7), torch.rand(1, 3, *SIZE))
    assert torch.allclose(constant, torch.tensor(0.7), atol=1e-4)
    with pytest.raises(ValueError, match="embedding"):
        pixel_correlation(torch.rand(1, 2, *SIZE), torch.rand(1, 3, 6, 5))


def test_only_the_strongest_class_goes_into_the_module(generator: torch.Generator):
    raw = torch.randn(2, 3, *SIZE, generator=generator)
    found = strongest_maps(raw)
    for image in range(2):
        normal = torch.stack([(one.relu() - 1e-5).relu() / (one.relu().max() + 1e-5) for one in raw[image]])
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                values = normal[:, y, x]
                best = int(values.argmax())
                expected = [1 - float(values[best]), *(float(v) if k == best else 0.0 for k, v in enumerate(values))]
                assert torch.allclose(found[image, :, y, x], torch.tensor(expected), atol=1e-6)


def by_hand(large: View, small: View, tags: Tensor, share: float) -> tuple[float, float]:
    """Equations in the words of the facts, image by image."""

    def normal(maps: Tensor) -> Tensor:
        rows = []
        for one in maps.relu():
            rows.append((one - one.min() - 1e-5).relu() / (one.max() - one.min() + 1e-5))
        return torch.stack(rows)

    differences, hard = [], []
    for image in range(len(tags)):
        y = tags[image].view(-1, 1, 1)
        both = torch.cat([torch.ones(1, 1, 1), y])
        cams = [normal(view.raw[image]) * y for view in (large, small)]
        refined = [normal(view.refined[image]) * both for view in (large, small)]
        differences.append((cams[0] - cams[1]).abs())
        with_background = [torch.cat([1 - one.max(0, keepdim=True).values, one]) for one in cams]
        total = 0.0
        for other, own in ((with_background[1], refined[0]), (with_background[0], refined[1])):
            kept = other.clone()
            for place in torch.cartesian_prod(torch.arange(SIZE[0]), torch.arange(SIZE[1])).tolist():
                column = kept[1:, place[0], place[1]]
                kept[1:, place[0], place[1]] = torch.where(column == column.max(), column, 0.0)
            values = (kept - own).abs().flatten().sort(descending=True).values
            total += float(values[: int(len(values) * share)].mean())
        hard.append(total)
    return float(torch.stack(differences).mean()), sum(hard) / len(hard)


def test_the_losses_are_those_of_the_paper(generator: torch.Generator):
    views = [
        View(torch.randn(2, 3, *SIZE, generator=generator), torch.rand(2, 4, *SIZE, generator=generator))
        for _ in range(2)
    ]
    tags = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    found = seam_losses(*views, tags, hard=0.2)
    assert [float(one) for one in found] == pytest.approx(by_hand(*views, tags, 0.2), rel=1e-4)
    assert float(seam_losses(views[0], views[0], tags)[0]) == 0
    outside = torch.zeros(2, *SIZE, dtype=torch.bool)
    assert [float(one) for one in seam_losses(*views, tags, valid=outside)] == [0, 0]


def test_the_target_of_the_cross_term_has_no_gradient(generator: torch.Generator):
    raw = torch.randn(1, 2, *SIZE, generator=generator, requires_grad=True)
    refined = torch.rand(1, 3, *SIZE, generator=generator, requires_grad=True)
    view = View(raw, refined)
    _, cross = seam_losses(view, view, torch.ones(1, 2))
    cross.backward()
    assert raw.grad is None
    assert refined.grad.any()


def test_the_lowest_quarter_counts():
    refined = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 3, 1, 1)
    refined[:, 2] = 100  # of a class that the image does not show
    assert float(lowest_activation(refined, torch.tensor([[1.0, 0.0]]))) == pytest.approx((0 + 1 + 2 + 3) / 4)


def test_the_module_learns_from_refined_maps_alone_and_the_encoder_from_the_others():
    task, batch = make_task("SEAMTask"), make_batch([[1, 2], [3]], [(64, 64), (64, 64)])
    raw, refined = task.train().network.both(batch["image"], batch["valid"])
    refined.sum().backward()
    reached = {name.split(".")[0] for name, one in task.network.named_parameters() if one.grad is not None}
    assert reached == {"low", "middle", "embed"}
    task.zero_grad(set_to_none=True)
    training_loss(task, batch).backward()
    learning = {name.split(".")[0] for name, one in task.network.named_parameters() if one.grad is not None}
    assert learning == {"encoder", "classifier", "low", "middle", "embed"}
    assert raw.shape[1] == 4


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match=r"small in \(0, 1\)"):
        make_task("SEAMTask", small=1.0)


def test_layers_are_the_published_ones_and_the_paper_has_no_lowest_activation():
    network = make_task("SEAMTask", lowest=0.0, hard=1.0).network
    layers = {"low": (64, (1, 1)), "middle": (128, (1, 1)), "embed": (192, (1, 1))}
    for name, (width, kernel) in layers.items():
        layer = getattr(network, name)
        assert (layer.out_channels, layer.kernel_size, layer.bias) == (width, kernel, None)
    assert network.embed.in_channels == 64 + 128 + 3
    assert network.dropout.p == 0.5
    for wrong in ({"small": 1.0}, {"hard": 0.0}, {"lowest": -0.1}):
        with pytest.raises(ConfigError, match=r"small in \(0, 1\), hard in \(0, 1\] and lowest >= 0"):
            make_task("SEAMTask", **wrong)
