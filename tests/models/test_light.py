import pytest
import torch

from dhr_lightning.losses.soft_labels import soft_cross_entropy
from dhr_lightning.models.light import LightSegmenter
from dhr_lightning.ops.soft_labels import class_shares

TAPS = {"block8": 6, "keys": 4, "values": 3}


def network(**options: int | float) -> LightSegmenter:
    torch.manual_seed(0)
    return LightSegmenter(TAPS, 5, **{"width": 16, **options}).eval()


def random_features(batch: int = 2, grid: tuple[int, int] = (5, 7)) -> torch.Tensor:
    return torch.randn(batch, 13, *grid, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 7), (8, 3)])
@pytest.mark.parametrize("upsample", [1, 2, 3])
@torch.no_grad()
def test_logits_lie_on_a_finer_grid(grid: tuple[int, int], upsample: int):
    model = network(upsample=upsample)
    fine = (grid[0] * upsample, grid[1] * upsample)
    assert model(random_features(grid=grid).half()).shape == (2, 5, *fine)
    encoded = model.encode(random_features(grid=grid))
    assert encoded.shape == (2, 16, *fine)
    assert torch.equal(model.classify(encoded), model(random_features(grid=grid)))


@torch.no_grad()
def test_without_blocks_it_is_the_classifier_of_the_upsampled_sum_of_taps():
    model, features = network(blocks=0), random_features()
    taps = [features[:, :6], features[:, 6:10], features[:, 10:]]
    total = sum(
        torch.einsum("bdhw,cd->bchw", tap, layer.weight[:, :, 0, 0])
        for tap, layer in zip(taps, model.projections, strict=True)
    )
    centred = total - total.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    encoded = torch.nn.functional.interpolate(torch.nn.functional.gelu(normed), (10, 14), mode="bilinear")
    expected = torch.einsum("bchw,kc->bkhw", encoded, model.classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(model(features), expected + model.classifier.bias[:, None, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_images_of_a_batch_do_not_touch_each_other(training: bool):
    model, features = network().train(training), random_features(3)
    together = model(features)
    for index in range(3):
        torch.testing.assert_close(model(features[index : index + 1])[0], together[index], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_far_cells_do_not_touch_each_other():
    """Two blocks of 3x3 on the doubled grid reach two cells, upsampling one: no statistic of the whole image."""
    model, features = network(), random_features(1, (6, 12))
    changed = features.clone()
    changed[..., 8:] += 3
    torch.testing.assert_close(model(changed)[..., :12], model(features)[..., :12], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model(changed)[..., 16:], model(features)[..., 16:])


def test_every_parameter_and_input_gets_a_gradient_and_it_is_right():
    model = network().double()
    features = random_features(1, (2, 3)).double().requires_grad_()
    model(features).square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())
    small = LightSegmenter({"a": 2, "b": 1}, 2, width=4, blocks=1).double()
    assert torch.autograd.gradcheck(small, (torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True),))


@torch.no_grad()
def test_statistics_of_all_taps_are_used_and_kept():
    model, features = network(), random_features()
    expected = model(features)
    mean, std = torch.arange(13.0), torch.arange(1.0, 14)
    model.set_statistics(mean, std)
    torch.testing.assert_close(
        model(features * std[:, None, None] + mean[:, None, None]), expected, atol=1e-4, rtol=1e-3
    )
    other = network()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(features), model(features))


@torch.no_grad()
def test_channels_are_dropped_in_training_only():
    model, features = network(dropout=0.5), random_features()
    assert torch.equal(model(features), model(features))
    model.train()
    assert not torch.equal(model(features), model(features))


def test_it_learns_the_class_of_a_cell():
    features = random_features(4, (6, 6))
    mask = (features[:, 7] > 0).long().repeat_interleave(2, 1).repeat_interleave(2, 2)
    shares, weight = class_shares(mask, 5, grid=(12, 12))
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = soft_cross_entropy(model(features), shares, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((model(features).argmax(1) == mask).float().mean()) > 0.95


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="Expected a tap in `channels` at least, but got none"):
        LightSegmenter({}, 2)
    with pytest.raises(ValueError, match=r"Expected `channels\['keys'\]` > 0, but got 0"):
        LightSegmenter({"keys": 0}, 2)
    for name in ("width", "upsample"):
        with pytest.raises(ValueError, match=f"Expected `{name}` > 0, but got 0"):
            LightSegmenter(TAPS, 2, **{name: 0})
    with pytest.raises(ValueError, match=r"Expected `dropout` in \[0.0, 0.999\], but got 1.0"):
        LightSegmenter(TAPS, 2, dropout=1.0)
    with pytest.raises(ValueError, match=r"Expected `features` of shape .* \(1, 13, 2, 2\), but got \(1, 12, 2, 2\)"):
        network()(torch.zeros(1, 12, 2, 2))
