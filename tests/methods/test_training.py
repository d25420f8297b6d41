"""What a step of a real fit does to the weights, and what of a batch it reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dhr_lightning.data.datamodule import normalize
from dhr_lightning.data.sample import Batch
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.models.segmenter import Segmenter, SegmenterOutput
from tests.task_samples import make_batch, make_task

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning misses what a tiny fit does not have
SGD = {"optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "power": 0.0}
RESNET = {"backbone": "resnet18", "output_stride": 16}


class Seeded(L.LightningDataModule):
    """The same batch several times; `seed` and `step` are what the tasks read of the real datamodule."""

    seed, step = 0, ""

    def __init__(self, batch: Batch, count: int) -> None:
        super().__init__()
        self.batch, self.count = batch, count

    def weights(self, port: str) -> None:
        """There is no earlier step."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([self.batch] * self.count, batch_size=None)


class Recorder(L.Callback):
    """Rates before every step, and the gradients and weights around the first one."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.gradients: dict[str, Tensor] = {}
        self.weights: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: BaseTask, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.weights.append(state(module))
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def state(task: BaseTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def fit(task: BaseTask, batch: Batch, folder: Path, *, steps: int = 2) -> Recorder:
    """Train for some steps as a stage does; the last of the recorder's weights are those after the last step."""
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        default_root_dir=folder,
    )
    for module in task.modules():  # as constructed: Lightning calls `train` on nothing
        module.training = True
    trainer.fit(task, datamodule=Seeded(batch, steps))
    recorder.weights.append(state(task))
    return recorder


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix("network.") for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def batch() -> Batch:
    return make_batch([[1], [2, 3]], [(32, 32), (32, 32)])


def test_the_second_step_adds_momentum_to_its_gradient(batch: Batch, tmp_path: Path):
    weights = {}
    for momentum in (0.0, 0.9):
        task = make_task("CAMTask", lr=1e-3, frozen_norm="statistics", momentum=momentum, **SGD)
        weights[momentum] = fit(task, batch, tmp_path).weights
    assert not changed(weights[0.0][1], weights[0.9][1]), "the first step has no past"
    name = "network.classifier.weight"
    first, second = (weights[0.0][k + 1][name] - weights[0.0][k][name] for k in (0, 1))
    with_momentum = weights[0.9][2][name] - weights[0.9][1][name]
    torch.testing.assert_close(with_momentum, second + 0.9 * first, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["WSSTask", "DHRTask"])
def test_momentum_is_nine_tenths_where_a_configuration_is_silent(name: str):
    task = make_task(name, optimizer="sgd")
    task._trainer = SimpleNamespace(estimated_stepping_batches=2)
    assert [group["momentum"] for group in task.configure_optimizers()["optimizer"].param_groups] == [0.9, 0.9]


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_the_rate_of_every_step_of_a_fit_follows_the_power(batch: Batch, tmp_path: Path, power: float):
    task = make_task("CAMTask", lr=1e-3, head_lr_factor=10, **{**SGD, "power": power})
    rates = fit(task, batch, tmp_path, steps=4).rates
    expected = [[1e-3 * (1 - k / 4) ** power, 1e-2 * (1 - k / 4) ** power] for k in range(4)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


@pytest.mark.parametrize("name", ["CAMTask", "WSSTask", "DHRTask"])
def test_everything_but_the_encoder_learns_as_many_times_faster_as_asked(batch: Batch, tmp_path: Path, name: str):
    task = make_task(name, lr=1e-3, head_lr_factor=7.0, momentum=0.0, **SGD)
    recorder = fit(task, batch, tmp_path, steps=1)
    before, after = recorder.weights
    assert recorder.gradients.keys() == dict(task.named_parameters()).keys()
    for parameter, gradient in recorder.gradients.items():
        rate = 1e-3 if parameter.startswith("network.encoder.") else 7e-3
        torch.testing.assert_close(after[parameter], before[parameter] - rate * gradient)
    assert any(float(gradient.abs().max()) > 0 for n, gradient in recorder.gradients.items() if ".encoder." not in n)


def kinds(task: BaseTask) -> dict[str, set[str]]:
    """Names of the encoder's weights by kind; those of norms split in statistics and scales."""
    result: dict[str, set[str]] = {"statistics": set(), "scales": set(), "rest": set()}
    norms = {n for n, m in task.network.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name in task.network.encoder.state_dict():
        kind = "rest" if name.rpartition(".")[0] not in norms else "statistics"
        kind = "scales" if kind == "statistics" and name.endswith((".weight", ".bias")) else kind
        result[kind].add(f"encoder.{name}")
    return result


@pytest.mark.parametrize(
    ("options", "learning"),
    [
        ({}, {"statistics", "scales", "rest"}),
        ({"frozen_norm": "statistics"}, {"scales", "rest"}),
        ({"frozen_norm": True}, {"rest"}),
        ({"frozen_encoder": True}, set()),
    ],
)
@pytest.mark.parametrize("backbone", [{}, RESNET], ids=["small32", "resnet18"])
def test_a_fit_changes_what_is_not_frozen_and_nothing_else(
    batch: Batch, tmp_path: Path, options: dict[str, Any], learning: set[str], backbone: dict[str, Any]
):
    task = make_task("CAMTask", lr=0.1, **{**SGD, **backbone, **options})
    recorder = fit(task, batch, tmp_path)
    by_kind = kinds(task)
    assert all(by_kind.values())
    expected = set().union(*(by_kind[kind] for kind in learning))
    assert changed(recorder.weights[0], recorder.weights[-1]) == expected | {"classifier.weight"}


@pytest.mark.parametrize(
    ("norm", "learning"), [(False, {"statistics", "scales", "rest"}), ("statistics", {"scales", "rest"})]
)
@pytest.mark.parametrize(
    ("backbone", "later"),
    [
        ({}, ("stages.3.", "stages.4.")),
        (RESNET, ("layer3.", "layer4.")),
        ({**RESNET, "backbone": "tu-resnet18"}, ("model.layer3.", "model.layer4.")),
    ],
    ids=["small32", "resnet18", "tu-resnet18"],
)
def test_stem_and_first_two_stages_keep_weights_and_statistics(
    batch: Batch, tmp_path: Path, norm: Any, learning: set[str], backbone: dict[str, Any], later: tuple[str, ...]
):
    task = make_task("CAMTask", lr=0.1, **{**SGD, **backbone}, frozen_stages=2, frozen_norm=norm)
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts with zeros, which hide the gradient of what comes before
    recorder = fit(task, batch, tmp_path)
    by_kind = kinds(task)
    free = set().union(*(by_kind[kind] for kind in learning))
    expected = {name for name in free if name.removeprefix("encoder.").startswith(later)}
    assert changed(recorder.weights[0], recorder.weights[-1]) == expected | {"classifier.weight"}
    trained = {name.removeprefix("network.") for name, p in task.named_parameters() if p.requires_grad}
    assert set(recorder.gradients) == {f"network.{name}" for name in trained}


def test_weight_decay_shrinks_what_learns_and_leaves_what_is_frozen(batch: Batch, tmp_path: Path):
    task = make_task("CAMTask", lr=0.1, momentum=0.0, **{**SGD, "weight_decay": 0.1}, frozen_stages=1, head_lr_factor=1)
    recorder = fit(task, batch, tmp_path, steps=1)
    before, after = recorder.weights
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            step = recorder.gradients[name] + 0.1 * before[name]
            torch.testing.assert_close(after[name], before[name] - 0.1 * step)
        else:
            assert torch.equal(after[name], before[name])


def test_the_classifier_learns_from_tags_and_not_from_pixel_labels(batch: Batch, tmp_path: Path):
    weights = []
    for change in ("nothing", "pixels", "tags"):
        masks = batch["inputs"]["masks"] if change == "nothing" else torch.full_like(batch["inputs"]["masks"], 4)
        changed_batch = Batch(**{**batch, "gt_mask": masks, "inputs": {**batch["inputs"], "masks": masks}})
        if change == "tags":
            changed_batch["tags"] = 1 - batch["tags"]
        weights.append(fit(make_task("CAMTask", lr=0.1, **SGD), changed_batch, tmp_path).weights[-1])
    assert not changed(weights[0], weights[1])
    assert "classifier.weight" in changed(weights[0], weights[2])


@pytest.mark.parametrize(("name", "learns"), [("WSSTask", {"masks"}), ("DHRTask", {"masks", "tags"})])
def test_a_segmenter_learns_from_its_masks_and_never_from_ground_truth_features_or_cams(
    batch: Batch, tmp_path: Path, name: str, learns: set[str]
):
    plain = {**batch, "gt_mask": torch.zeros_like(batch["inputs"]["masks"])}
    before = fit(make_task(name, lr=0.1, **SGD), Batch(**plain), tmp_path).weights[-1]
    others = {
        "gt_mask": {"gt_mask": torch.full_like(plain["gt_mask"], 4)},
        "tags": {"tags": 1 - batch["tags"]},
        "masks": {"inputs": {**batch["inputs"], "masks": 4 - batch["inputs"]["masks"]}},
        "features": {"inputs": {**batch["inputs"], "features": -batch["inputs"]["features"]}},
        "cam": {"inputs": {**batch["inputs"], "cam": 1 - batch["inputs"]["cam"]}},
    }
    for what, change in others.items():
        after = fit(make_task(name, lr=0.1, **SGD), Batch(**{**plain, **change}), tmp_path).weights[-1]
        assert bool(changed(before, after)) == (what in learns), what


def test_each_row_of_the_classifier_follows_its_own_tag():
    task, batch = make_task("CAMTask"), make_batch([[1], [1]], [(32, 32)] * 2)
    gradients = []
    for value in (0.0, 1.0):
        batch["tags"][:, 2] = value
        task.log = lambda *arguments, **options: None
        (gradient,) = torch.autograd.grad(task.training_step(batch, 0), [task.network.classifier.weight])
        gradients.append(gradient)
    differs = (gradients[0] - gradients[1]).flatten(1).abs().amax(1) > 0
    assert differs.tolist() == [False, False, True, False]


class Cellwise(nn.Module):
    """A network whose every cell sees its own 8 pixels only, in the form of a task's own."""

    def __init__(self, segments: bool) -> None:
        super().__init__()
        self.cam, self.segments = nn.Conv2d(3, 4, 8, stride=8), segments

    loss = Segmenter.loss

    def forward(self, image: Tensor) -> Tensor | SegmenterOutput:
        cam = self.cam(image)
        return SegmenterOutput(image.new_zeros(len(image), 5, *image.shape[-2:]), cam, []) if self.segments else cam


@pytest.mark.parametrize("name", ["CAMTask", "DHRTask"])
def test_the_classification_loss_and_its_gradient_do_not_see_the_padding(name: str):
    task, batch = make_task(name), make_batch([[1], [2, 4]], [(32, 32), (32, 32)])
    torch.manual_seed(0)
    task.network = Cellwise(segments=name == "DHRTask")
    task.log = task.log_dict = lambda *arguments, **options: None
    batch["valid"][0, :, 16:] = batch["valid"][1, :8] = False
    batch["inputs"]["masks"] = batch["inputs"]["masks"].where(batch["valid"], 255)
    results = []
    for content in (0.0, 50.0):
        batch["image"] = torch.where(batch["valid"][:, None], batch["image"], content)
        loss = task.training_step(batch, 0)
        results.append([loss.detach(), *torch.autograd.grad(loss, list(task.network.parameters()))])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
    maps = task.network.cam(batch["image"])
    alone = torch.stack([maps[0, :, :, :2].mean((1, 2)), maps[1, :, 1:].mean((1, 2))])
    expected = nn.functional.multilabel_soft_margin_loss(alone, batch["tags"])
    segmentation = torch.tensor(5.0).log() if name == "DHRTask" else 0
    torch.testing.assert_close(results[0][0], (expected + segmentation).detach())


def test_pixels_in_the_padding_never_reach_the_network():
    batch = make_batch([[1]], [(32, 32)])
    batch["valid"][:, :, 20:] = False
    noisy = torch.where(batch["valid"][:, None], batch["pixels"], 255)
    assert torch.equal(normalize(noisy, batch["valid"]), normalize(batch["pixels"], batch["valid"]))
