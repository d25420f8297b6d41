"""CAUSE: what learns in which phase, the teacher, positions on other grids, the bank in the checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.features.cause import task as module
from dhr_lightning.methods.features.cause.task import CauseTask, one_of_each_square
from dhr_lightning.models.cause import CauseHead, nearest_codes
from tests.pipeline_workspace import Workspace
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]


def task_with_optimizers(epoch: int, **changes: Any) -> CauseTask:
    """A task in training, outside a trainer, in an epoch."""
    torch.manual_seed(0)
    task = make_task("CauseTask", **changes).train()
    codebook, heads = task.configure_optimizers()
    task.optimizers = lambda: [codebook, heads]
    task.manual_backward = lambda loss: loss.backward()
    task.log = lambda *_, **__: None
    task._trainer = SimpleNamespace(current_epoch=epoch, datamodule=SimpleNamespace(step="uss"))
    return task


def step(task: CauseTask, images: Tensor) -> None:
    task.training_step({"image": images, "pixels": images, "id": ["a"] * len(images)}, 0)


def state(task: CauseTask) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in task.network.named_parameters()}


def changed(before: dict[str, Tensor], task: CauseTask) -> set[str]:
    return {name for name, one in task.network.named_parameters() if not torch.equal(one, before[name])}


@pytest.mark.parametrize("decoder", ["transformer", "mlp"])
def test_each_phase_moves_its_own_part_and_never_the_backbone(decoder: str):
    images = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    task = task_with_optimizers(0, decoder=decoder)
    before = state(task)
    step(task, images)
    assert changed(before, task) == {"codes"}
    assert int(task.bank.filled.sum()) == 0
    task._trainer.current_epoch = 1
    before = state(task)
    step(task, images)
    learnt = {name for name in before if name.startswith(("student.", "project."))}
    teacher = {name for name in before if name.startswith("teacher")}
    moved = changed(before, task)
    assert moved >= learnt - {name for name in learnt if name.endswith(("in_proj_bias", "position"))}
    assert moved <= learnt | teacher
    assert int(task.bank.filled.sum()) > 0


def test_the_teacher_is_an_average_and_gives_the_features():
    task = task_with_optimizers(1)
    network, images = task.network, torch.randn(2, 3, 128, 128)
    expected = {name: one.detach().clone() for name, one in network.teacher.named_parameters()}
    step(task, images)
    for name, one in network.student.named_parameters():
        torch.testing.assert_close(network.teacher.get_parameter(name), 0.99 * expected[name] + 0.01 * one)
    assert not any(one.requires_grad for one in network.teacher.parameters())
    task.eval()
    with torch.no_grad():
        features = network.features(images)
        code = network.code(features)
        torch.testing.assert_close(code, network.teacher(features, network.codes))
        network.student.project.linear.weight.add_(1)
        assert torch.equal(code, network.code(features))
        network.teacher.project.linear.weight.add_(1)
        assert not torch.equal(code, network.code(features))


def test_one_cell_of_each_square_is_drawn_evenly():
    maps = torch.arange(2 * 9 * 10).view(2, 1, 9, 10).float()
    torch.manual_seed(0)
    seen = torch.stack([one_of_each_square(maps, 4)[..., 0] for _ in range(400)]).long()  # (400, 2, 4)
    assert seen.shape[1:] == (2, 4)
    for image in range(2):
        for square, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            cells = maps[image, 0, row : row + 4, column : column + 4].long().flatten().tolist()
            found, counts = seen[:, image, square].unique(return_counts=True)
            assert found.tolist() == cells
            assert int(counts.min()) > 8


@torch.no_grad()
def test_positions_stay_where_they_are_on_other_grids():
    torch.manual_seed(0)
    head = CauseHead(8, 4, decoder="transformer", side=4).eval()
    head.decoder.position.zero_()
    head.decoder.position[0, :, :, 2:] = 3.0  # left and right differ
    asked: list[Tensor] = []
    head.decoder.own.register_forward_pre_hook(lambda _, given: asked.append(given[0] - given[2]))  # query - code
    code = head(torch.randn(1, 8, 6, 10), torch.randn(5, 8))
    place = asked[0].transpose(1, 2).unflatten(2, (6, 10))
    assert code.shape == (1, 4, 6, 10)
    torch.testing.assert_close(place[..., :3], torch.zeros(1, 8, 6, 3), atol=0.3, rtol=0)  # bicubic: up to a ripple
    torch.testing.assert_close(place[..., 7:], torch.full((1, 8, 6, 3), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(place, place[:, :, :1].expand_as(place), atol=1e-4, rtol=0)  # rows stay rows


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder": "cnn"}, "transformer or mlp, but got 'cnn'"),
        ({"crop_size": 100}, "multiple of the 16 pixels"),
        ({"crop_size": 32}, "at least 64, but got 32"),
        ({"codes": 1}, "codes >= 2"),
        ({"contrast": {"temprature": 1}}, r"Unknown contrast\.temprature"),
        ({"contrast": {"decay": 1.0}}, r"contrast\.decay in \[0, 1\)"),
        ({"scales": []}, "scales to be positive"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        make_task("CauseTask", **changes)


@pytest.mark.slow
def test_a_recipe_runs_with_it_and_reads_no_label(workspace: Workspace, ran: list[str]):
    options = ["--swap", "uss=cause"]
    assert workspace.run(options=[*options, "--until", "uss"]) == 0
    assert ran == ["fit uss", "predict uss"]
    plan = workspace.plan(options=options)
    (address, split), *_ = plan["uss"].outputs()
    files = sorted(workspace.store.folder(address, split).glob("*.npy"))
    assert len(files) == 12
    checkpoint = plan["uss"].identity.run_folder / "version_0/checkpoints/last.ckpt"
    kept = torch.load(Path(checkpoint), weights_only=True)["state_dict"]
    assert int(kept["bank.filled"].sum()) > 0


def test_the_nearest_code_is_that_of_the_largest_cosine():
    tokens, codes = torch.randn(2, 9, 5), torch.randn(7, 5) * torch.linspace(0.1, 9, 7)[:, None]  # of any length
    expected = torch.nn.functional.cosine_similarity(tokens[:, :, None], codes[None, None], dim=-1).argmax(-1)
    assert torch.equal(nearest_codes(tokens, codes), expected)


def test_gradients_are_clipped_at_the_published_norm():
    task = task_with_optimizers(1, contrast={"projection": 8, "capacity": 6, "clip": 1e-6})
    steps: list[float] = []
    heads = [*task.network.student.parameters(), *task.network.project.parameters()]
    optimizer = task.optimizers()[1]
    real = optimizer.step

    def stepped(*given: Any) -> Any:
        steps.append(float(torch.stack([one.grad.norm() for one in heads if one.grad is not None]).norm()))
        return real(*given)

    optimizer.step = stepped
    step(task, torch.randn(3, 3, 128, 128))
    assert steps[0] == pytest.approx(1e-6, rel=1e-2)


def test_an_anchor_does_not_meet_itself_and_the_bank_counts_beside_the_batch():
    task = task_with_optimizers(1)
    with torch.no_grad():
        task.network.codes.copy_(torch.eye(*task.network.codes.shape))  # different codes are different concepts
    ids = torch.tensor([[0, 1]])  # one token of each: none has a positive but itself
    anchors, targets = torch.eye(2, 8)[None], torch.eye(2, 8).flip(0)[None]  # as unlike itself as can be
    assert float(task._contrast(anchors, targets, ids)) == 0
    task.bank.add(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))
    assert float(task._contrast(anchors, targets, ids)) > 0


def test_codes_start_within_one_over_their_number():
    torch.manual_seed(0)
    codes = make_task("CauseTask", codes=50).network.codes.detach()
    assert float(codes.abs().max()) <= 1 / 50
    assert float(codes.min()) < -0.018  # of both signs, up to the end
    assert float(codes.max()) > 0.018


def test_the_contrast_is_a_mean_over_tokens_with_positives(monkeypatch: pytest.MonkeyPatch):
    given = iter([(torch.tensor([2.0, 4.0]), torch.tensor([True, True])), (torch.tensor([9.0]), torch.tensor([True]))])
    monkeypatch.setattr(module, "contrast_loss", lambda *_, **__: next(given))
    task = task_with_optimizers(1)
    task.bank.add(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))
    assert float(task._contrast(torch.eye(2, 8)[None], torch.eye(2, 8)[None], torch.tensor([[0, 1]]))) == 5


def test_the_decoder_alone_has_weight_decay():
    codebook, heads = make_task("CauseTask", weight_decay=0.03).configure_optimizers()
    assert {group["weight_decay"] for group in codebook.param_groups} == {0}
    assert {group["weight_decay"] for group in heads.param_groups} == {0.03}


def test_an_image_alone_has_the_code_that_it_has_beside_others():
    task = make_task("CauseTask")
    features = torch.randn(3, task.network.features(torch.randn(1, 3, 64, 64)).shape[1], 5, 4)
    together = task.network.student(features, task.network.codes)
    for row in range(3):
        alone = task.network.student(features[row : row + 1], task.network.codes)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
