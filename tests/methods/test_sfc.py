"""SFC against slow references: coefficients, prototypes, bank, gradients, and the bank of a resumed run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.seeds.sfc.bank import Crops, ImageBank
from dhr_lightning.methods.seeds.sfc.losses import distribution_coefficients, prototype_loss, scale_loss
from dhr_lightning.methods.seeds.sfc.network import prototype_maps, start_maps
from dhr_lightning.methods.seeds.sfc.task import SFCTask, above_background
from tests.mixed_photos import MixedPhotos
from tests.task_samples import make_batch, make_task, training_loss

VOC = [590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267, 613, 1188, 445, 492, 4155, 522, 300, 649, 503, 567]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_coefficients_are_the_published_ones_and_their_mean_is_one():
    found = distribution_coefficients(torch.tensor(VOC), resampled=660 * 4 * 3 / 20)
    assert float(found.mean()) == pytest.approx(1, abs=1e-6)
    named = {14: 1.545, 8: 0.907, 11: 0.887, 6: 0.873, 2: 0.773, 16: 1.595, 9: 1.769, 5: 1.208}
    assert {index: round(float(found[index]), 3) for index in named} == named
    assert distribution_coefficients(torch.full((4,), 7), resampled=0).tolist() == [1, 1, 1, 1]
    assert torch.isfinite(distribution_coefficients(torch.tensor([0, 5]), resampled=0)).all()


def test_prototypes_are_means_of_their_seeds(generator: torch.Generator):
    maps, levels = torch.rand(2, 4, 5, 6, generator=generator), torch.randn(2, 7, 5, 6, generator=generator)
    valid = torch.rand(2, 5, 6, generator=generator) > 0.2
    maps[:, 3] = 0  # a class that wins nowhere
    found = prototype_maps(maps, levels, valid)
    for image in range(2):
        scaled = maps[image].clone()
        scaled[0] *= 0.3
        winner = scaled.argmax(0)
        for value in range(4):
            seeds = (winner == value) & valid[image]
            mean = levels[image][:, seeds].mean(1) if seeds.any() else torch.zeros(7)
            cosine = torch.nn.functional.cosine_similarity(levels[image], mean[:, None, None], dim=0)
            assert torch.allclose(found[image, value], cosine.relu(), atol=1e-5)
    assert not found[:, 3].any()
    assert torch.allclose(prototype_maps(maps.flip(0), levels.flip(0), valid.flip(0)), found.flip(0))


def test_maps_of_absent_classes_and_of_padding_are_zero(generator: torch.Generator):
    raw, valid = torch.randn(1, 3, 4, 4, generator=generator), torch.ones(1, 4, 4, dtype=torch.bool)
    valid[..., 3:] = False
    raw[..., 3:] = 99
    found = start_maps(raw, torch.tensor([[1.0, 0.0, 1.0]]), valid)
    assert not found[:, 2].any()
    assert not found[..., 3:].any()
    assert float(found[:, 1].max()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(found[:, 0, :, :3], 1 - found[:, 1:, :, :3].amax(1))


def test_losses_weigh_the_classes(generator: torch.Generator):
    one, two = (torch.rand(2, 3, 4, 4, generator=generator) for _ in range(2))
    weights = torch.tensor([0.5, 2.0])
    total = 0.0
    for image in range(2):
        for value, weight in enumerate([1.0, 0.5, 2.0]):
            scaled = two[image, value] / (two[image, value].max() + 1e-5)
            total += weight * float((one[image, value] - scaled).abs().sum())
    assert float(prototype_loss(one, two, weights)) == pytest.approx(total / 96, rel=1e-5)
    tags = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    total = sum(
        float(tags[image, tag]) * float(weights[tag]) * float((one - two)[image, tag + 1].abs().sum())
        for image in range(2)
        for tag in range(2)
    )
    assert float(scale_loss(one, two, tags, weights)) == pytest.approx(total / 64, rel=1e-5)
    assert float(scale_loss(one, one, tags, weights)) == 0


def crops(tags: list[list[int]], first: int = 0) -> Crops:
    multi_hot = torch.zeros(len(tags), 4)
    for row, values in enumerate(tags):
        multi_hot[row, values] = 1
    pixels = torch.arange(first, first + len(tags), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return Crops(pixels, torch.ones(len(tags), 8, 8, dtype=torch.bool), multi_hot)


def test_the_bank_keeps_the_latest_crop_of_a_class_and_draws_what_is_there():
    bank = ImageBank(4, 8)
    assert len(bank.draw(4).pixels) == 0
    bank.update(crops([[0, 1], [1]]))
    assert bank.pixels[:, 0, 0, 0].tolist() == [0, 1, 0, 0]
    assert bank.filled.tolist() == [True, True, False, False]
    assert sorted(bank.draw(4).pixels[:, 0, 0, 0].tolist()) == [0, 1]
    bank.update(crops([[3], [0]], first=5))
    assert bank.pixels[:, 0, 0, 0].tolist() == [6, 1, 0, 5]
    torch.manual_seed(0)
    seen = torch.cat([bank.draw(1).tags for _ in range(300)])
    drawn = [int((seen == bank.tags[slot]).all(1).sum()) for slot in (0, 1, 3)]
    assert min(drawn) > 70
    torch.manual_seed(1)
    first = bank.draw(2).pixels
    torch.manual_seed(1)
    assert torch.equal(bank.draw(2).pixels, first)


def with_bank(size: int = 32, **changes: object) -> SFCTask:
    task = make_task("SFCTask", **changes)
    task.bank = ImageBank(4, size)
    return task


def test_the_bank_is_part_of_a_checkpoint_at_any_size_of_crops():
    one, two = with_bank(16), make_task("SFCTask")
    one.bank.update(Crops(torch.full((1, 3, 16, 16), 9, dtype=torch.uint8), torch.ones(1, 16, 16, dtype=torch.bool),
                          torch.tensor([[0.0, 1, 0, 0]])))  # fmt: skip
    checkpoint = {"state_dict": one.state_dict()}
    two.on_load_checkpoint(checkpoint)
    two.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(two.bank.pixels, one.bank.pixels)
    assert two.bank.filled.tolist() == [False, True, False, False]


def test_projections_send_nothing_to_the_encoder_and_everything_learns():
    task, batch = with_bank(), make_batch([[1, 2], [3]], [(32, 32), (32, 32)])
    network = task.train().network
    parts = network.parts(batch["image"])
    prototype_maps(
        torch.rand(2, 5, *parts.raw.shape[-2:]), parts.levels, torch.ones(2, *parts.raw.shape[-2:]) > 0
    ).sum().backward()
    assert {name.split(".")[0] for name, one in network.named_parameters() if one.grad is not None} == {"sides"}
    task.zero_grad(set_to_none=True)
    training_loss(task, batch).backward()
    learning = {
        name.split(".")[0] for name, one in network.named_parameters() if one.grad is not None and one.grad.any()
    }
    assert learning == {"encoder", "classifier", "sides", "embed"}


def test_images_of_the_bank_join_the_batch():
    task, batch = with_bank(bank=3), make_batch([[1, 2], [3]], [(32, 32), (32, 32)])
    image, valid, tags = task._with_bank(batch)
    assert len(image) == len(valid) == len(tags) == 5
    assert {tuple(row) for row in tags[2:].tolist()} <= {tuple(row) for row in batch["tags"].tolist()}
    alone = make_task("SFCTask", bank=0)
    assert alone._with_bank(batch)[0] is batch["image"]


def test_counts_come_from_tags_and_a_resumed_run_keeps_its_bank(tmp_path: Path):
    photos, task = MixedPhotos(tmp_path / "images"), with_bank()
    data = photos.attach(task, range(8), 4)
    data.batch_size = 4
    task._trainer.ckpt_path = None
    task.on_fit_start()
    assert task.bank.pixels.shape == (4, 3, 512, 512)
    counts = np.bincount([tag - 1 for record in photos.records for tag in record.tags], minlength=4)
    expected = distribution_coefficients(torch.tensor(counts), resampled=4 * 3.0 * 2 / 4)
    assert torch.equal(task.coefficients, expected)
    kept = task.bank
    task._trainer.ckpt_path = "last.ckpt"
    task.on_fit_start()
    assert task.bank is kept


def test_a_constant_score_of_a_fifth_decides_as_the_code_does(generator: torch.Generator):
    maps, valid = torch.rand(1, 4, 6, 7, generator=generator), torch.ones(1, 6, 7, dtype=torch.bool)
    scaled = maps[0] / maps[0].amax((1, 2), keepdim=True)
    for value in range(1, 4):
        expected = 2 * scaled[value] > scaled[0] + 0.4
        assert torch.equal(above_background(maps, valid)[0, value - 1] > 0.2, expected)


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="all weights >= 0"):
        make_task("SFCTask", proto=-1.0)


@torch.no_grad()
def test_both_maps_of_all_scales_and_mirrors_are_added_up():
    torch.manual_seed(0)
    task, batch = make_task("SFCTask", scales=[1.0, 2.0], proto=0.7), make_batch([[1, 2], [3]], [(32, 48), (32, 48)])
    task.network.classifier.weight.abs_()
    found = task.compact_cam(batch, task.tagged(batch))
    grid, totals = found.shape[-2:], [torch.zeros(2, 5, *found.shape[-2:]) for _ in range(2)]
    for size in ((32, 48), (64, 96)):
        image = (
            batch["image"]
            if size == (32, 48)
            else F.interpolate(batch["image"], size, mode="bilinear", align_corners=False)
        )
        own, mirrored = task.network.parts(image), task.network.parts(image.flip(-1))
        both = type(own)(*(one + other.flip(-1) for one, other in zip(own, mirrored, strict=True)))
        inside = torch.ones(2, *own.raw.shape[-2:], dtype=torch.bool)
        for total, maps in zip(totals, task.network.maps(both, batch["tags"], inside), strict=True):
            total += F.interpolate(maps, grid, mode="bilinear", align_corners=False)
    for image, tags in enumerate([[1, 2], [3]]):
        for row, tag in enumerate(tags):
            parts = []
            for total in totals:
                scaled = total[image] / total[image].amax((1, 2), keepdim=True).clamp_min(1e-5)
                parts.append((scaled[tag] - scaled[0] / 2).clamp_min(0))
            expected = parts[0] + 0.7 * parts[1]
            torch.testing.assert_close(found[image, row], expected / expected.max().clamp_min(1e-5), atol=1e-3, rtol=0)


def test_the_loss_is_the_sum_of_its_three_parts_with_their_weights():
    torch.manual_seed(0)
    task = make_task("SFCTask", bank=0, prototype_weight=3.0, scale_weight=5.0).train()
    batch = make_batch([[1, 2], [3]], [(32, 48), (32, 48)])
    parts: dict[str, torch.Tensor] = {}
    task.log_dict = lambda values, **_: parts.update(values)
    loss = task.training_step(batch, 0)
    assert min(float(one.detach()) for one in parts.values()) > 0
    expected = parts["train/loss_cls"] + 3 * parts["train/loss_proto"] + 5 * parts["train/loss_scale"]
    torch.testing.assert_close(loss, expected)
