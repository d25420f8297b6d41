"""Leopart: what learns, the teacher, the queue, schedules, resume."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from dhr_lightning.cli import quiet
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.leopart import task as module
from dhr_lightning.methods.features.leopart.task import LeopartTask
from tests.methods.test_uss import Keep
from tests.pipeline_workspace import Workspace
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]
CLUSTERS = {"hidden": 16, "outputs": 8, "prototypes": 6, "queue": 40}


def batch_of(images: int = 3, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.randint(0, 256, (images, 3, side, side), generator=generator, dtype=torch.uint8) for side in (64, 64, 32)
    ]
    boxes = torch.tensor([[0.0, 0.0, 0.8, 0.8], [0.2, 0.2, 1.0, 1.0], [0.3, 0.3, 0.7, 0.7]]).expand(images, 3, 4)
    return {"id": [str(image) for image in range(images)], "views": views, "boxes": boxes}


def task_in_training(step: int = 0, **changes: Any) -> LeopartTask:
    """A task in training, outside a trainer."""
    task = make_task("LeopartTask", **changes).train()
    task.log = lambda *_, **__: None
    task._trainer = SimpleNamespace(
        estimated_stepping_batches=10, current_epoch=0, global_step=step, accumulate_grad_batches=1, is_last_batch=True,
        datamodule=SimpleNamespace(step="uss", seed=0), optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )  # fmt: skip
    type(task).global_step = property(lambda self: self._trainer.global_step)
    return task


@pytest.fixture(autouse=True)
def own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeopartTask, "global_step", LeopartTask.global_step)  # put back what tasks set


def test_the_student_learns_all_of_it_and_the_teacher_nothing():
    task = task_in_training()
    task.training_step(batch_of(), 0).backward()
    without = {name for name, one in task.named_parameters() if one.grad is None or not one.grad.any()}
    teacher = {name for name, _ in task.named_parameters() if name.startswith("network.teacher")}
    assert teacher
    assert teacher <= without
    # positions of the class token and its own query do reach the cells: they take part in the attention
    assert without - teacher <= {name for name in without if "fc_norm" in name or "head_drop" in name}
    groups = task.parameter_groups()
    assert {id(one) for one in groups[0]} == {id(one) for one in task.network.backbone.parameters()}
    assert {id(one) for one in groups[1]} == {id(one) for one in task.network.head.parameters()}


def test_the_loss_is_lowest_for_a_student_that_says_what_the_teacher_says():
    """Equal networks on equal views: the cross entropy is that of the assignments with themselves, and no lower."""
    task = task_in_training(clusters={**CLUSTERS, "queue": 0})
    batch = batch_of()
    batch["views"], batch["boxes"] = [batch["views"][0]] * 2, batch["boxes"][:, :1].expand(-1, 2, -1)
    task.multi_crop = SimpleNamespace(counts=(2, 0))
    equal = float(task.training_step(batch, 0).detach())
    with torch.no_grad():
        task.network.head.prototypes.copy_(task.network.head.prototypes.flip(0))
    assert float(task.training_step(batch, 0).detach()) > equal + 0.1


def test_the_teacher_is_an_average_whose_decay_rises_to_one(monkeypatch: pytest.MonkeyPatch):
    task = task_in_training(clusters={**CLUSTERS, "decay": 0.9})
    student = [*task.network.backbone.parameters(), *task.network.head.parameters()]

    @torch.no_grad()
    def step(*_: Any, **__: Any) -> None:
        for one in student:
            one.add_(0.1)

    monkeypatch.setattr(L.LightningModule, "optimizer_step", step)
    for number, decay in ((0, 0.9), (2, 0.9096), (5, 0.95), (10, 1.0)):
        task._trainer.global_step = number
        before = [one.clone() for one in task.network.teacher.parameters()]
        task.optimizer_step(0, 0, None)
        for old, now, new in zip(before, task.network.teacher.parameters(), student, strict=True):
            torch.testing.assert_close(now, decay * old + (1 - decay) * new, atol=1e-5, rtol=1e-3)


def test_weight_decay_rises_by_a_cosine():
    task = task_in_training(weight_decay=0.04, final_weight_decay=0.5)
    groups = [{"weight_decay": 0.04}, {"weight_decay": 0.04}]
    task.optimizers = lambda: SimpleNamespace(param_groups=groups)
    for step, expected in ((0, 0.04), (2, 0.08393), (5, 0.27), (10, 0.5)):
        task._trainer.global_step = step
        task.on_train_batch_start({}, 0)
        assert [group["weight_decay"] for group in groups] == pytest.approx([expected] * 2, rel=1e-3)


def test_the_queue_holds_the_newest_cells_and_is_read_once_it_is_full(monkeypatch: pytest.MonkeyPatch):
    from dhr_lightning.methods.features.leopart import task as module

    task, assigned, real = task_in_training(clusters={**CLUSTERS, "queue": 100}), [], module.assign
    monkeypatch.setattr(module, "assign", lambda scores, **o: assigned.append(len(scores)) or real(scores, **o))
    kept: list[Tensor] = []
    enqueue = task._enqueue
    task._enqueue = lambda cells: kept.append(cells) or enqueue(cells)
    for number in range(4):
        task.training_step(batch_of(seed=number), 0)
    assert assigned[0] == len(kept[0])
    full = [sum(map(len, kept[:number])) >= 100 for number in range(4)]
    assert full[1:] == [False, False, True] or full[1:] == [False, True, True]
    assert assigned == [len(one) + (100 if ready else 0) for one, ready in zip(kept, full, strict=True)]
    torch.testing.assert_close(task.queue, torch.cat(kept[::-1])[:100])
    assert {"queue", "queued"} <= set(task.state_dict())


def test_a_view_is_never_compared_with_itself(monkeypatch: pytest.MonkeyPatch):
    from dhr_lightning.methods.features.leopart import task as module

    task, pairs, real = task_in_training(), [], module.view_loss
    batch = batch_of()

    def spy(target: Any, cosines: Tensor, boxes: Tensor, **options: Any) -> Any:
        pairs.append((float(target.boxes[0, 0]), float(boxes[0, 0])))
        return real(target, cosines, boxes, **options)

    monkeypatch.setattr(module, "view_loss", spy)
    task.training_step(batch, 0)
    large, small = [round(float(one), 3) for one in batch["boxes"][0, :2, 0]], 0.3
    found = [(round(a, 3), round(b, 3)) for a, b in pairs]
    assert found == [(large[0], large[1]), (large[0], small), (large[1], large[0]), (large[1], small)]


def test_cosines_are_those_of_unit_prototypes():
    head = task_in_training().network.head
    maps = torch.randn(2, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    before = head(maps)
    with torch.no_grad():
        head.prototypes.mul_(7)
    torch.testing.assert_close(head(maps), before)
    assert before.abs().max() <= 1 + 1e-6


def test_targets_are_shares_in_the_foreground_alone():
    task = task_in_training()
    batch = batch_of()
    seen = [task.network.seen(task._normalized(view)) for view in batch["views"][:2]]
    targets = task._targets(seen, batch["boxes"])
    for index, target in enumerate(targets):
        sums = target.shares.sum(1)
        torch.testing.assert_close(sums, target.foreground.float())
        assert 0 < target.foreground.float().mean() < 1
        assert torch.equal(target.boxes, batch["boxes"][:, index])
        torch.testing.assert_close(seen[index].vectors.norm(dim=1), torch.ones(3, 4, 4))


def test_the_attention_is_that_of_the_class_token_to_the_patches():
    task = task_in_training()
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    found = task.network.seen(images).attention
    model, kept = task.network.teacher[0].model, []
    for block in model.blocks:
        block.attn.fused_attn = False
    model.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, __, output: kept.append(output))
    model.forward_features(images)
    expected = kept[0].mean(1)[:, 0, model.num_prefix_tokens :].reshape(2, 4, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_features_are_the_cells_of_the_student():
    task = make_task("LeopartTask")
    images = torch.randn(1, 3, 64, 48)
    code = task.network.code(task.network.features(images))
    tokens = task.network.backbone.model.forward_features(images)[:, task.network.backbone.model.num_prefix_tokens :]
    torch.testing.assert_close(code.flatten(2).transpose(1, 2), tokens)


def test_a_resumed_fit_ends_with_the_weights_of_an_uninterrupted_one(tiny_voc: Path, tmp_path: Path):
    quiet()

    def fit(checkpoint: Path | None = None) -> dict[str, Tensor]:
        data = WSSSDataModule("voc", root=str(tiny_voc), workspace=str(tmp_path), batch_size=2, num_workers=0)
        task = make_task("LeopartTask", final_weight_decay=0.5, optimizer="adamw", lr=1e-3)
        task.train()
        trainer = L.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[Keep(tmp_path)], enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        return task.state_dict()

    straight = fit()
    torch.manual_seed(123)
    resumed = fit(tmp_path / "1.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    early = torch.load(tmp_path / "1.ckpt", weights_only=True)["state_dict"]
    changed = {name for name, value in straight.items() if not torch.equal(value, early[name])}
    assert {"queue", "queued", "network.head.prototypes"} <= changed
    assert any(name.startswith("network.backbone") for name in changed)
    assert any(name.startswith("network.teacher") for name in changed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dimension": 32}, "dimension to be the 64 channels of 'test_vit'"),
        ({"views": {"sizes": [70, 32]}}, r"multiples of the 16 pixels .* \[70, 32\]"),
        ({"views": {"sizes": [48, 32]}}, r"at least 4 patches of 16 pixels, .* \[48, 32\]"),
        ({"views": {"size": 3}}, r"Unknown views\.size"),
        ({"clusters": {"prototype": 3}}, r"Unknown clusters\.prototype"),
        ({"clusters": {"prototypes": 1}}, r"clusters\.prototypes >= 2"),
        ({"clusters": {"mass": 0}}, r"clusters\.mass in \(0, 1\]"),
        ({"clusters": {"epsilon": 0}}, r"clusters\.epsilon > 0"),
        ({"backbone": "resnet18"}, "vision transformer with a class token .* 'resnet18' is none"),
        ({"backbone": "patches"}, "vision transformer with a class token .* 'patches' is none"),
        ({"backbone": "vit_base_patch16_siglip_224"}, "vision transformer with a class token"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        make_task("LeopartTask", **changes)


@pytest.mark.slow
def test_a_recipe_runs_with_it(workspace: Workspace, ran: list[str]):
    options = ["--swap", "uss=leopart"]
    assert workspace.run(options=[*options, "--until", "uss"]) == 0
    assert ran == ["fit uss", "predict uss"]
    (address, split), *_ = workspace.plan(options=options)["uss"].outputs()
    assert len(list(workspace.store.folder(address, split).glob("*.npy"))) == 12


def test_the_loss_is_computed_in_float32_in_mixed_precision(monkeypatch: pytest.MonkeyPatch):
    task, seen = task_in_training(), []
    real = module.view_loss

    def watched(target: Tensor, cosines: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((torch.is_autocast_enabled("cpu"), cosines.dtype))
        return real(target, cosines, *rest, **options)

    monkeypatch.setattr(module, "view_loss", watched)
    with torch.autocast("cpu", torch.bfloat16):
        task.training_step(batch_of(), 0)
    assert set(seen) == {(False, torch.float32)}
