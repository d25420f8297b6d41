"""AdvCAM against the published form with two backward passes, and the directions it climbs in."""

import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.advcam.climbing import Climb, Pairs, attributions, climb, resized
from tests.task_samples import make_batch, make_task

SETTINGS = Climb(iterations=3)


class Net(nn.Module):
    """A classifier of three tags on five channels at stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 5, 3, 1, 1), nn.ReLU())
        self.classifier = nn.Conv2d(5, 3, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.body(image))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def published(net: Net, image: Tensor, tag: int, settings: Climb) -> Tensor:
    """One image and class as the original does it: Grad-CAM by a backward pass of its own, then the climb."""
    pair = torch.cat([image, image.flip(-1)])
    low, high = pair.min(), pair.max()
    total, first = torch.zeros(6, 5), None
    for _ in range(settings.iterations):
        pair = pair.detach().requires_grad_(True)
        features = net.body(pair)
        maps = net.classifier(features)
        (gradient,) = torch.autograd.grad(maps[:, tag].relu().sum(), features, retain_graph=True)
        weights = gradient.sum((2, 3), keepdim=True) / (gradient > 0).sum()  # of each image, over one count
        heat = (weights.detach() * features).sum(1).relu()
        found = heat[0] + heat[1].flip(-1)
        first = found.detach() if first is None else first
        total = total + found.detach()
        scores = maps.relu().mean((2, 3)).sum(0)
        high_regions = (found.detach() / found.detach().max() > settings.threshold).float()
        loss = -2 * scores[tag] + scores.sum()
        objective = -loss - settings.restraint * ((found - first).abs() * high_regions).sum()
        (ascent,) = torch.autograd.grad(objective, pair)
        pair = torch.clamp(pair + settings.step * ascent / (ascent.abs().max() + 1e-12), low, high)
    return total


def pairs_of(image: Tensor, *tags: int) -> Pairs:
    valid = torch.ones(len(tags), *image.shape[-2:], dtype=torch.bool)
    return Pairs(image.expand(len(tags), -1, -1, -1), valid, torch.tensor(tags))


@pytest.mark.parametrize("tag", [0, 1, 2])
def test_one_backward_pass_gives_the_maps_of_two(net: Net, image: Tensor, tag: int):
    expected = published(net, image, tag, SETTINGS)
    found = climb(net, net.classifier.weight[:, :, 0, 0], pairs_of(image, tag), SETTINGS, scale=1.0)[0]
    assert expected.any()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_classes_and_images_do_not_meet(net: Net, image: Tensor):
    weight = net.classifier.weight[:, :, 0, 0]
    other = torch.cat([image, image.flip(2), image * 0.5])
    valid = torch.ones(3, 12, 10, dtype=torch.bool)
    tags = torch.tensor([2, 0, 1])
    together = climb(net, weight, Pairs(other, valid, tags), SETTINGS, scale=1.0)
    for index in range(3):
        alone = climb(net, weight, pairs_of(other[index : index + 1], int(tags[index])), SETTINGS, scale=1.0)[0]
        assert torch.allclose(together[index], alone, atol=1e-6)


def test_the_score_rises_and_padding_counts_for_nothing(net: Net, image: Tensor):
    weight = net.classifier.weight[:, :, 0, 0]
    scores = []

    def watch(batch: Tensor) -> Tensor:
        maps = net(batch)
        scores.append(float((2 * maps[:, 1] - maps.sum(1)).relu().mean().detach()))
        return maps

    climb(watch, weight, pairs_of(image, 1), Climb(iterations=6, restraint=0.0), scale=1.0)
    assert len(scores) == 6
    assert scores[-1] > scores[0]
    padded = torch.nn.functional.pad(image, (0, 4, 0, 4))
    valid = torch.zeros(1, 16, 14, dtype=torch.bool)
    valid[:, :12, :10] = True
    found = climb(net, weight, Pairs(padded, valid, torch.tensor([1])), SETTINGS, scale=1.0)[0]
    assert not found[6:].any()
    assert not found[:, 5:].any()


def test_a_class_without_activation_gives_a_map_of_zeros():
    maps = -torch.ones(2, 1, 3, 4, 4)
    found = attributions(maps, torch.tensor([1]), torch.rand(3, 5))
    assert not found.any()
    assert torch.isfinite(found).all()


def test_scales_count_alike_unless_the_oversight_is_asked_for():
    both = Climb(iterations=27)
    assert [both.steps(scale) for scale in (0.5, 1.0, 2.0)] == [13, 27, 27]
    assert both.steps(0.5) * both.weight(0.5) == pytest.approx(27)
    assert Climb(balanced=False).weight(0.5) == 1.0
    small = resized(pairs_of(torch.rand(1, 3, 12, 10), 0), 0.5)
    assert small.image.shape == (1, 3, 6, 5)
    assert small.valid.all()


def test_prediction_leaves_weights_alone_and_works_in_inference_mode():
    task, batch = make_task("AdvCAMTask", climb={"iterations": 2}), make_batch([[1, 2], [3]], [(32, 32), (32, 32)])
    before = {name: one.clone() for name, one in task.state_dict().items()}
    with torch.inference_mode():
        batch = {**batch, "image": batch["image"].clone()}
        found = task.predict_step(batch, 0)["cam"]
    assert [keys.tolist() for keys, _ in found] == [[1, 2], [3]]
    assert all(float(maps.max()) <= 1 and float(maps.min()) >= 0 for _, maps in found)
    assert all(torch.equal(one, before[name]) for name, one in task.state_dict().items())
    assert all(one.grad is None for one in task.parameters())
    one_by_one = make_task("AdvCAMTask", climb={"iterations": 2}, at_once=1)
    for (_, ours), (_, theirs) in zip(found, one_by_one.predict_step(batch, 0)["cam"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match=r"Unknown climb\.stepz"):
        make_task("AdvCAMTask", climb={"stepz": 1})
    with pytest.raises(ConfigError, match=r"climb.iterations >= 1"):
        make_task("AdvCAMTask", climb={"iterations": 0})
    with pytest.raises(ConfigError, match="at_once >= 1"):
        make_task("AdvCAMTask", at_once=0)


def test_every_class_of_every_image_climbs():
    torch.manual_seed(0)
    task = make_task("AdvCAMTask", climb={"iterations": 2}, scales=[1.0, 0.5], at_once=2)
    batch = make_batch([[1, 2], [3]], [(32, 32), (32, 32)])
    task.network.classifier.weight.data.abs_()  # every class has some activation
    found = task.predict_step(batch, 0)["cam"]
    weight = task.network.classifier.weight[:, :, 0, 0]
    for image, tags in enumerate([[1, 2], [3]]):
        for row, tag in enumerate(tags):
            pair = Pairs(batch["image"][image : image + 1], batch["valid"][image : image + 1], torch.tensor([tag - 1]))
            total = torch.zeros(1, 1, *found[image][1].shape[-2:])
            for scale in (1.0, 0.5):
                one = climb(task.network, weight, resized(pair, scale), task.climb_settings, scale=scale)
                total += nn.functional.interpolate(one[:, None], total.shape[-2:], mode="bilinear", align_corners=False)
            expected = total[0, 0].detach() / total.max().detach()
            assert float(expected.max()) == pytest.approx(1)
            torch.testing.assert_close(found[image][1][row].float(), expected, atol=2e-3, rtol=0)
