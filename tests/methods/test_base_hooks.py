"""Rates, randomness, batches and figures that all tasks share."""

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.cli import quiet
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import CheckpointError, ConfigError, NonFiniteLossError
from dhr_lightning.methods.base import BaseTask, check_class_names, cut_masks
from dhr_lightning.models.cards import IMAGENET_CARD, WeightsCard, card_of
from dhr_lightning.steps import StepSpec
from tests.pipeline_workspace import Lines
from tests.task_samples import NAMES, make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


class Task(BaseTask):
    """The smallest task: an encoder and a head of one weight each."""

    spec = StepSpec("none", "none", "the smallest")

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"class_names": NAMES, **options})
        self.network = nn.Module()
        self.network.encoder = nn.Conv2d(1, 1, 1, bias=False)
        self.network.head = nn.Conv2d(1, 1, 1, bias=False)


def optimiser_of(task: BaseTask, steps: float) -> tuple[torch.optim.Optimizer, Any]:
    task._trainer = SimpleNamespace(estimated_stepping_batches=steps)
    made = task.configure_optimizers()
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def rates(steps: float, count: int, **options: Any) -> list[float]:
    optimizer, scheduler = optimiser_of(Task(lr=1.0, **options), steps)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_both_optimisers_take_rates_and_decay_from_the_settings():
    sgd, _ = optimiser_of(Task(optimizer="sgd", momentum=0.5, weight_decay=0.25, lr=0.1, head_lr_factor=3.0), 10)
    adamw, _ = optimiser_of(Task(optimizer="adamw", weight_decay=0.25, lr=0.1, head_lr_factor=3.0), 10)
    assert type(sgd) is torch.optim.SGD
    assert type(adamw) is torch.optim.AdamW
    for optimizer in (sgd, adamw):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.3])
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}
        assert optimizer.defaults["lr"] == 0.1
    assert {group["momentum"] for group in sgd.param_groups} == {0.5}


def test_a_part_without_weights_to_train_has_no_group():
    task = Task()
    task.network.encoder.requires_grad_(False)
    optimizer, _ = optimiser_of(task, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-2)]
    without = Task()
    del without.network.encoder
    assert without.parameter_groups()[0] == []
    assert len(without.parameter_groups()[1]) == 1


def test_the_rate_stays_at_zero_after_the_last_step():
    assert rates(4, 7, power=1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0, 0])


def test_the_rate_rises_to_its_full_value_and_then_decays():
    assert rates(6, 6, power=1.0, warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3])
    assert rates(5, 5, power=1.0, warmup=0.3) == pytest.approx([1, 1, 0.75, 0.5, 0.25])  # rounded down to one step
    assert rates(5, 3, power=1.0, warmup=0.1) == pytest.approx([1, 0.8, 0.6])  # to none


@pytest.mark.parametrize("steps", [0, 1])
def test_a_fit_of_one_step_takes_it_at_the_full_rate(steps: int):
    assert rates(steps, 2, power=1.0) == [1, 0]


@pytest.mark.parametrize("options", [{"lr": 1e-9}, {"warmup": 0.0}, {"momentum": 0.0}, {"frozen_norm": "statistics"}])
def test_settings_at_the_edge_are_allowed(options: dict[str, Any]):
    Task(**options)


@pytest.mark.parametrize(("options", "name"), [({"lr": -1.0}, "lr -1.0"), ({"warmup": -0.1}, "warmup -0.1")])
def test_settings_beyond_the_edge_are_refused(options: dict[str, Any], name: str):
    with pytest.raises(ConfigError, match=f"Expected lr > 0 and 0 <= warmup < 1, but got .*{name}"):
        Task(**options)


def test_weights_are_laid_out_channels_last():
    task = make_task("CAMTask")
    task.configure_model()
    four = [p for p in task.network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert four
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


def test_tasks_without_network_or_encoder_freeze_nothing():
    for task in (make_task("MARSTask"), make_task("FittedTask")):
        task.configure_model()
        assert task.train() is task
        assert all(module.training for module in task.modules())
        assert not any(module.training for module in task.train(False).modules())


def noise_of(seed: int, epoch: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """A number that the step of this batch draws, whatever was drawn before."""
    torch.rand(3)
    task = Task()
    monkeypatch.setattr(Task, "current_epoch", epoch)
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(seed=seed))
    task.on_train_batch_start(None, batch)
    return float(torch.rand(1))


def test_what_a_step_draws_depends_on_seed_epoch_and_batch_only(monkeypatch: pytest.MonkeyPatch):
    places = [(seed, epoch, batch) for seed in (0, 1) for epoch in (0, 1) for batch in (0, 1)]
    first, second = ([noise_of(*place, monkeypatch) for place in places] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(places)


class Moves:
    """A datamodule that notes what is done to every batch."""

    seed = 0

    def __init__(self) -> None:
        self.done: list[Any] = []

    def whole_dataloader(self, records: Sequence[Any], *, when: str) -> list[str]:
        return [f"{when} batch of {record}" for record in records]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        self.done.append(("moved", batch, device.type, index))
        return f"moved {batch}"

    def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
        self.done.append(("normalised", batch, index))
        return f"normalised {batch}"


@pytest.mark.parametrize(("options", "when"), [({}, "predict"), ({"when": "refresh"}, "refresh")])
def test_batches_are_moved_and_normalised_one_at_a_time_and_shown(
    options: dict[str, Any], when: str, monkeypatch: pytest.MonkeyPatch
):
    shown: list[str] = []
    monkeypatch.setattr("dhr_lightning.methods.base.track", lambda items, what: shown.append(what) or iter(items))
    task, moves = Task(), Moves()
    task._trainer = SimpleNamespace(datamodule=moves)
    found = task.whole_batches(("a", "b"), "round 3", **options)
    assert next(found) == f"normalised moved {when} batch of a"
    assert moves.done == [("moved", f"{when} batch of a", "cpu", 0), ("normalised", f"moved {when} batch of a", 0)]
    assert list(found) == [f"normalised moved {when} batch of b"]
    assert shown == ["round 3"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_place_the_images_and_the_rates(
    value: float, monkeypatch: pytest.MonkeyPatch
):
    task, batch = Task(), {"id": ["one", "two"]}
    monkeypatch.setattr(Task, "current_epoch", 3)
    groups = [{"lr": 0.012345}, {"lr": 2.0}]
    task._trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)])
    with pytest.raises(
        NonFiniteLossError,
        match=rf"The loss is {value} at epoch 3, batch 7 \(images one, two; learning rates 0\.012, 2\)",
    ):
        task.check_loss(torch.tensor(value), batch, 7)
    loss = torch.tensor(1.5, requires_grad=True)
    assert task.check_loss(loss, batch, 7) is loss


def test_a_checkpoint_without_a_class_list_is_accepted():
    Task().on_load_checkpoint({})
    Task().on_load_checkpoint({"hyper_parameters": {}})
    with pytest.raises(CheckpointError, match=r"^The checkpoint was trained on 1 classes \(cow\)"):
        Task().on_load_checkpoint({"hyper_parameters": {"class_names": ["cow"]}})


def test_a_checkpoint_keeps_how_images_were_normalised():
    """Weights that a task goes on with want the images that they learnt from, whatever its settings say."""
    task, fresh = Task(), Task()
    assert task.card == IMAGENET_CARD
    task.card = WeightsCard((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "lanczos", "CC0", "self", "own")
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    stored = io.BytesIO()
    torch.save(checkpoint, stored)
    stored.seek(0)
    fresh.on_load_checkpoint(torch.load(stored, weights_only=True))
    assert fresh.card == task.card
    fresh.on_load_checkpoint({})  # older ones say nothing
    assert fresh.card == task.card
    assert Task.card == IMAGENET_CARD


@pytest.mark.parametrize("name", ["CAMTask", "WSSTask", "DHRTask", "FittedTask"])
def test_tasks_normalise_images_for_their_backbone(name: str):
    task = make_task(name, backbone="tu-test_resnet")
    assert task.card == card_of("test_resnet", False)
    assert task.card.mean == (0.5, 0.5, 0.5) != IMAGENET_CARD.mean


def test_the_same_class_list_is_accepted_as_a_list_or_a_tuple():
    classes = ClassSet(("background", "cat"))
    check_class_names(["background", "cat"], classes, where="")
    check_class_names(("background", "cat"), classes, where="")


def test_masks_are_cut_to_their_images():
    batch = make_batch([[1], [2]], [(20, 32), (32, 12)])
    masks = torch.arange(2 * 32 * 32).view(2, 32, 32) % 251
    (one,), (other,) = cut_masks(masks, batch)
    assert torch.equal(one, masks[0, :20].to(torch.uint8))
    assert torch.equal(other, masks[1, :, :12].to(torch.uint8))
    assert one.dtype == torch.uint8
    batch["geometry"] = batch["geometry"][:1]
    with pytest.raises(ValueError, match="zip"):
        cut_masks(masks, batch)


class Log:
    """What a task logs, with its options."""

    def __init__(self, task: BaseTask) -> None:
        self.values: dict[str, float] = {}
        self.options: dict[str, dict[str, Any]] = {}
        task.log = self
        task.log_dict = lambda values, **options: [self(name, value, **options) for name, value in values.items()]

    def __call__(self, name: str, value: Any, **options: Any) -> None:
        self.values[name], self.options[name] = float(torch.as_tensor(value).detach()), options


def test_training_losses_are_shown_and_weighted_by_the_images_of_the_batch():
    for name, figures in {
        "CAMTask": {"train/loss_cls"},
        "WSSTask": {"train/loss_seg"},
        "DHRTask": {"train/loss_seg", "train/loss_cls"},
    }.items():
        task = make_task(name)
        log = Log(task)
        task.train().training_step(make_batch([[1], [2], [3]], [(32, 32)] * 3), 0)
        assert log.options == {figure: {"prog_bar": True, "batch_size": 3} for figure in figures}


@torch.no_grad()
def test_validation_figures_are_those_of_all_processes():
    quiet()
    task = make_task("WSSTask")
    log, batch = Log(task), make_batch([[1], [2]], [(32, 32), (32, 32)])
    batch["gt_mask"] = torch.full((2, 32, 32), 255)
    batch["gt_mask"][:, :8], batch["gt_mask"][:, 8:16] = 0, 2
    prediction = batch["gt_mask"].clone()
    prediction[:, :4] = 2
    prediction[:, 16:] = 4  # where the truth is unknown
    logits = nn.functional.one_hot(prediction.where(prediction < 5, 4), 5).permute(0, 3, 1, 2).float()
    task.forward = lambda image: logits
    task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert log.values == pytest.approx(
        {"val/iou/background": 0.5, "val/iou/dog": 8 / 12, "val/miou": (0.5 + 8 / 12) / 2}
    )
    assert log.options.pop("val/miou") == {"prog_bar": True, "sync_dist": True}
    assert all(options == {"sync_dist": True} for options in log.options.values())
    assert int(task.confusion.matrix.sum()) == 0
    assert type(task).on_test_epoch_end is type(task).on_validation_epoch_end


@torch.no_grad()
def test_the_classifier_is_validated_by_its_tags(lines: Lines):
    quiet()
    task, batch = make_task("CAMTask"), make_batch([[1], [2, 3], [4]], [(32, 32), (32, 16), (16, 32)])
    log, maps = Log(task), torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    task.network.forward = lambda image: maps
    task.validation_step(batch, 0)
    means = torch.stack([maps[0].mean((1, 2)), maps[1, :, :, :2].mean((1, 2)), maps[2, :, :2].mean((1, 2))])
    expected = nn.functional.multilabel_soft_margin_loss(means, batch["tags"])
    assert log.values == pytest.approx({"val/loss_cls": float(expected)})
    assert log.options == {"val/loss_cls": {"batch_size": 3, "sync_dist": True}}
    task.on_validation_epoch_end()
    assert log.options["val/tag_map"] == {"prog_bar": True, "sync_dist": True}
    assert log.values["val/tag_map"] == pytest.approx(mean_average_precision(means, batch["tags"]))
    assert task.average_precision.metric.update_count == 0


def mean_average_precision(scores: Tensor, tags: Tensor) -> float:
    """Mean over the tags of the precision at every hit, image by image in the order of the scores."""
    precisions = []
    for score, tag in zip(scores.T, tags.T, strict=True):
        hits = tag[score.argsort(descending=True)]
        at = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        precisions.append(float(at[hits > 0].mean()))
    return sum(precisions) / len(precisions)
