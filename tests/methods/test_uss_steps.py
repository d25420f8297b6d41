"""What stage 2 collects, from how many images, in which phase, and what it says and logs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError, NonFiniteLossError
from dhr_lightning.methods.features.collecting import CollectingTask
from dhr_lightning.methods.features.images import equal_sizes, images_of
from dhr_lightning.methods.features.stego import task as module
from tests.methods.uss_samples import attach
from tests.task_samples import make_batch, make_task

VIT = "vit_tiny_patch16_224"
SIZES = [(48, 64), (64, 40), (48, 64)]


def make_uss(head: str = "principal_axes", backbone: str = "patches", **options: Any) -> CollectingTask:
    own = {"stego": {"crop_size": 32, "neighbours": 3, "points": 3}} if head == "stego" else {"head": head}
    return make_task("StegoTask" if head == "stego" else "FittedTask", **{"backbone": backbone, **own, **options})


@pytest.fixture
def epoch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say which epoch runs."""

    def set_epoch(number: int) -> None:
        monkeypatch.setattr(CollectingTask, "current_epoch", number)

    set_epoch(0)
    return set_epoch


def batch_of(seed: int = 0) -> Batch:
    batch = make_batch([[1], [2], [1]], SIZES)
    generator = torch.Generator().manual_seed(seed)
    batch["pixels"] = torch.randint(0, 256, batch["pixels"].shape, generator=generator, dtype=torch.uint8)
    return batch


def collected(task: CollectingTask, index: int = 0) -> Tensor:
    task.collected = []
    task.training_step(batch_of(), index)
    return torch.cat(task.collected)


@pytest.mark.parametrize(("total", "images", "share"), [(30, 3, 10), (31, 3, 11), (2, 3, 1)])
def test_every_image_gives_its_share_of_patches_and_then_of_cells(total: int, images: int, share: int, epoch: Any):
    task = make_uss(patches=total, cells=total + 60)
    attach(task, images)
    patches = collected(task)
    assert patches.shape[0] == 3 * share
    task.network.backbone.fit(torch.randn(200, patches.shape[1]))
    cells = collected(task)
    assert cells.shape == (3 * -(-(total + 60) // images), task.network.backbone.out_channels)
    assert cells.dtype == torch.float32


def test_the_draw_depends_on_epoch_and_batch_and_not_on_what_was_drawn_before(epoch: Any):
    task = make_uss(patches=60)
    attach(task)
    first = collected(task)
    torch.manual_seed(99)
    assert torch.equal(collected(task), first)
    assert not torch.equal(collected(task, index=1), first)
    epoch(1)
    assert not torch.equal(collected(task), first)


def test_cells_are_those_of_the_images(epoch: Any):
    """Every cell drawn is one of the features of some image; with one draw for all images of a group."""
    task = make_uss(backbone=VIT, cells=60)
    attach(task)
    cells = collected(task)
    with torch.no_grad():
        features = [task.network.features(images) for _, images in equal_sizes(batch_of(), "image")]
    known = torch.cat([one.flatten(2).transpose(1, 2).flatten(0, 1) for one in features])
    assert torch.cdist(cells, known).amin(1).max() < 1e-3 * known.norm(dim=1).max()
    assert len(cells.unique(dim=0)) > 15
    assert not cells.requires_grad


def test_the_first_fit_is_of_the_backbone_and_the_second_of_the_head(epoch: Any, monkeypatch: pytest.MonkeyPatch):
    task, fitted = make_uss(patches=90, cells=60), []
    attach(task)
    for part, name in ((task.network.backbone, "backbone"), (task.network.head, "head")):
        real = part.fit

        def fit(gathered: Tensor, *, seed: int, real: Any = real, name: str = name) -> None:
            fitted.append((name, tuple(gathered.shape), seed))
            real(gathered, seed=seed)

        monkeypatch.setattr(part, "fit", fit)
    for number in (0, 1):
        epoch(number)
        task.training_step(batch_of(), 0)
        task.training_step(batch_of(1), 1)
        task.on_train_epoch_end()
        assert task.collected == []
    channels = task.network.backbone.out_channels
    assert fitted == [("backbone", (180, fitted[0][1][1]), 5), ("head", (120, channels), 5)]
    task.on_train_epoch_end()
    assert len(fitted) == 2  # nothing collected, nothing fitted


@pytest.mark.parametrize(
    ("head", "backbone", "epochs", "allowed"),
    [
        ("principal_axes", "patches", 1, False),
        ("principal_axes", "patches", 2, True),
        ("principal_axes", VIT, 1, True),
        ("principal_axes", VIT, 0, False),
        ("stego", "patches", -1, True),
        ("stego", VIT, None, False),
    ],
)
def test_a_fit_needs_an_epoch_for_every_part(head: str, backbone: str, epochs: int | None, allowed: bool):
    task = make_uss(head, backbone)
    attach(task, max_epochs=epochs)
    if allowed:
        task.on_fit_start()
        return
    with pytest.raises(ConfigError, match=rf"max_epochs >= {1 + (backbone == 'patches')}, but got {epochs}"):
        task.on_fit_start()


@pytest.mark.parametrize(
    ("images", "batch", "ranks", "neighbours", "allowed"),
    [
        (2, 2, 1, 3, True),
        (2, 1, 1, 3, False),
        (1, 8, 1, 0, False),
        (4, 2, 2, 3, True),
        (3, 2, 2, 3, False),
        (2, 2, 1, 5, True),
        (2, 2, 1, 6, False),
        (3, 2, 1, 10, True),
    ],
)
def test_stego_needs_two_images_in_a_batch_and_enough_crops_of_others(
    images: int, batch: int, ranks: int, neighbours: int, allowed: bool
):
    task = make_uss("stego", VIT)
    task.stego = SimpleNamespace(neighbours=neighbours)
    attach(task, images, batch_size=batch, world_size=ranks)
    if allowed:
        task.on_fit_start()
        return
    with pytest.raises(ConfigError):
        task.on_fit_start()
    fitted = make_uss("principal_axes", VIT)
    attach(fitted, images, batch_size=batch, world_size=ranks)
    fitted.on_fit_start()  # a head that is fitted compares nothing


def test_neighbours_are_found_once_and_when_the_backbone_is_ready(monkeypatch: pytest.MonkeyPatch):
    found: list[Any] = []
    task = make_uss("stego", "patches")
    datamodule = attach(task)
    datamodule.set_neighbours = lambda neighbours: found.append(neighbours)
    monkeypatch.setattr(task, "_find_neighbours", lambda: "neighbours")
    task.on_train_epoch_start()
    assert found == []
    task.network.backbone.fitted.fill_(True)
    task.on_train_epoch_start()
    assert found == ["neighbours"]
    datamodule.neighbours = "neighbours"
    task.on_train_epoch_start()
    assert len(found) == 1


class Optimiser:
    """Notes what is asked of it, and of the schedule."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


def stego_step(
    task: CollectingTask, monkeypatch: pytest.MonkeyPatch, loss: float = 1.5
) -> tuple[list[str], dict[str, Any]]:
    """One step of STEGO with a loss that is given: calls in their order, and what is logged."""
    optimiser, logged = Optimiser(), {}
    result = SimpleNamespace(loss=torch.tensor(loss, requires_grad=True), cosines=(0.1, 0.2, 0.3))
    monkeypatch.setattr(module, "stego_loss", lambda *_: result)
    monkeypatch.setattr(task, "optimizers", lambda: optimiser)
    schedule = SimpleNamespace(step=lambda: optimiser.calls.append("schedule"))
    monkeypatch.setattr(task, "lr_schedulers", lambda: schedule)
    monkeypatch.setattr(
        task, "manual_backward", lambda loss: optimiser.calls.append(f"backward {float(loss.detach())}")
    )
    monkeypatch.setattr(task, "log", lambda name, value, **options: logged.update({name: (value, options)}))
    monkeypatch.setattr(
        task, "log_dict", lambda values, **options: logged.update({n: (v, options) for n, v in values.items()})
    )
    batch = make_batch([[1], [2]], [(32, 32), (32, 32)])
    batch["neighbour"], batch["neighbour_image"] = batch["pixels"].flip(0), batch["image"].flip(0)
    task.training_step(batch, 4)
    return optimiser.calls, logged


@pytest.mark.parametrize("backbone", [VIT, "patches"])
def test_a_step_of_stego_updates_once_and_logs_loss_and_cosines(backbone: str, monkeypatch: pytest.MonkeyPatch):
    task = make_uss("stego", backbone)
    if backbone == "patches":
        task.network.backbone.fitted.fill_(True)
    calls, logged = stego_step(task, monkeypatch)
    assert calls == ["zero_grad", "backward 1.5", "step", "schedule"]
    value, options = logged.pop("train/loss_stego")
    assert float(value.detach()) == 1.5
    assert options == {"prog_bar": True, "batch_size": 2}
    assert sorted(logged) == sorted(f"train/cosine_{pair}" for pair in module.PAIRS)
    assert [figure for figure, _ in logged.values()] == [0.1, 0.2, 0.3]
    assert all(options == {"batch_size": 2} for _, options in logged.values())


def test_a_loss_of_stego_that_is_not_finite_stops_before_the_update(monkeypatch: pytest.MonkeyPatch, epoch: Any):
    task = make_uss("stego", VIT)
    epoch(6)
    task._trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}])])
    with pytest.raises(NonFiniteLossError, match=r"nan at epoch 6, batch 4 \(images image_0, image_1; .* 0\.5\)"):
        stego_step(task, monkeypatch, loss=float("nan"))


@torch.no_grad()
def test_the_files_of_a_batch_are_in_its_order():
    task = make_uss(backbone=VIT, dimension=4, scales=(1.0, 2.0), flip=True)
    torch.nn.init.normal_(task.network.head.projection, generator=torch.Generator().manual_seed(0))
    batch = make_batch([[1], [2], [1]], [(32, 32), (48, 32), (32, 32)])
    found = task.predict_step(batch, 0)["features"]
    assert [tuple(one.shape) for (one,) in found] == [(4, 2, 2), (4, 3, 2), (4, 2, 2)]
    for place, (height, width) in enumerate([(32, 32), (48, 32), (32, 32)]):
        image = batch["image"][place : place + 1, :, :height, :width]
        expected = task.network.multi_scale(image, (1.0, 2.0), flip=True)[0]
        torch.testing.assert_close(found[place][0], expected, atol=1e-4, rtol=1e-4)


def test_images_are_grouped_by_size_and_cut_to_it():
    batch = make_batch([[1], [2], [1]], SIZES)
    groups = list(equal_sizes(batch, "pixels"))
    assert [places for places, _ in groups] == [[0, 2], [1]]
    assert torch.equal(groups[0][1], batch["pixels"][[0, 2], :, :48, :64])
    assert torch.equal(groups[1][1], batch["pixels"][[1], :, :64, :40])
    assert next(equal_sizes(batch, "image"))[1].dtype == torch.float32
    assert images_of(batch, "image") is batch["image"]
