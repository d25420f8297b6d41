"""The segmenter of MARS: what is completed, how certain, what the teacher is, and that 254 appears nowhere."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.errors import ConfigError
from dhr_lightning.losses.pixels import segmentation_loss
from dhr_lightning.methods.segmenters.mars_wss.task import rejected_pixels
from tests.pipeline_workspace import Workspace
from tests.task_samples import make_batch, make_task, training_loss

pytest_plugins = ["tests.pipeline_fixtures"]
OPTIONS = ["--swap", "uss=patches"]


def batch_with_rejected() -> dict:
    batch = make_batch([[1, 2], [3]], [(32, 32), (32, 32)])
    debiased = batch["inputs"]["masks"].clone()
    debiased[:, :, :10] = torch.where(debiased[:, :, :10] == 1, 0, debiased[:, :, :10])
    debiased[1, :6] = 255
    batch["inputs"]["debiased"] = debiased
    return batch


class Fixed(nn.Module):
    """A teacher that says what it is told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> "Fixed":
        return self


def test_rejected_pixels_get_the_vote_of_the_teacher_and_its_certainty():
    task, batch = make_task("MARSSegmenterTask"), batch_with_rejected()
    logits = torch.randn(2, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2
    task.teacher = Fixed(logits)
    labels, certainty = task.completed(batch)
    masks, debiased = batch["inputs"]["masks"], batch["inputs"]["debiased"]
    assert (masks != debiased).any()
    tags = [[1, 2], [3]]
    for image in range(2):
        for y in range(0, 32, 3):
            for x in range(0, 32, 3):
                before, after = int(masks[image, y, x]), int(debiased[image, y, x])
                if before in (0, 255) or before == after:
                    assert (int(labels[image, y, x]), float(certainty[image, y, x])) == (before, 1.0)
                    continue
                chances = logits[image, :, y, x].softmax(0)
                best = max([0, *tags[image]], key=lambda value: float(chances[value]))
                assert int(labels[image, y, x]) == best
                sure = max(float(chances[tag]) for tag in tags[image])
                assert float(certainty[image, y, x]) == pytest.approx(sure, abs=1e-6)


def test_background_and_ignored_pixels_are_never_rejected():
    masks, debiased = torch.tensor([[[0, 255, 1, 1, 1, 2]]]), torch.tensor([[[0, 255, 0, 255, 1, 2]]])
    assert rejected_pixels(masks, debiased, ignore_index=255)[0, 0].tolist() == [False, False, True, True, False, False]


def test_without_rejected_pixels_it_is_the_plain_segmenter():
    batch = batch_with_rejected()
    batch["inputs"]["debiased"] = batch["inputs"]["masks"]
    losses = [training_loss(make_task(name), batch) for name in ("MARSSegmenterTask", "WSSTask")]
    assert torch.allclose(losses[0], losses[1], rtol=1e-6)


def test_uncertain_pixels_lower_the_loss_and_count_in_its_mean():
    logits, mask = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]]])
    weight = torch.tensor([[[1.0, 0.25], [0.0, 1.0]]])
    each = [-float(logits[0, :, y, x].log_softmax(0)[mask[0, y, x]]) for y, x in ((0, 0), (0, 1))]
    found = segmentation_loss(logits, mask, ignore_index=255, weight=weight)
    assert float(found) == pytest.approx((each[0] + 0.25 * each[1]) / 3, rel=1e-5)


def test_the_teacher_is_the_exact_average_and_learns_nothing_else():
    task, batch = make_task("MARSSegmenterTask", teacher_decay=0.9), batch_with_rejected()
    training_loss(task, batch).backward()
    assert all(one.grad is None for one in task.teacher.parameters())
    assert not any(module.training for module in task.teacher.modules())
    assert task.network.training
    trained, averaged = task.parameter_groups(), {id(one) for one in task.teacher.parameters()}
    assert not averaged & {id(one) for group in trained for one in group}
    expected = {name: one.clone() for name, one in task.teacher.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            for one in task.network.parameters():
                one.add_(torch.randn_like(one))
        task.update_teacher()
        own = task.network.state_dict()
        expected = {
            name: 0.9 * one + 0.1 * own[name] if one.is_floating_point() else own[name]
            for name, one in expected.items()
        }
    for name, one in task.teacher.state_dict().items():
        assert torch.allclose(one.double(), expected[name].double(), atol=1e-6), name


def test_the_teacher_moves_with_the_optimiser(monkeypatch: pytest.MonkeyPatch):
    task, before = make_task("MARSSegmenterTask"), {}

    @torch.no_grad()
    def step(*_: object) -> None:
        for name, one in task.network.named_parameters():
            before[name] = task.teacher.get_parameter(name).clone()
            one.add_(1)

    monkeypatch.setattr(L.LightningModule, "optimizer_step", step)
    task.optimizer_step(0, 0, None)
    kept = task.hparams.teacher_decay
    for name, old in before.items():
        new = task.network.get_parameter(name)
        torch.testing.assert_close(task.teacher.get_parameter(name), kept * old + (1 - kept) * new)


@pytest.mark.slow
def test_a_recipe_runs_with_it_and_no_file_holds_254(workspace: Workspace, ran: list[str]):
    from dhr_lightning.__main__ import main

    words = ["run", "mars_full", *OPTIONS, "--overlay", "debug.yaml", "--root", str(workspace.data)]
    assert main(words) == 0
    assert ran == ["fit segmenter", "predict segmenter"]  # everything before it is shared with the recipe dhr
    masks = list((workspace.folder / "artifacts").glob("microworld/**/*.png"))
    assert len(masks) > 40
    for path in masks:
        assert not (read_mask(path) == 254).any(), path
    (fit,) = (workspace.folder / "runs/microworld/mars_wss").glob("*/version_0/checkpoints/last.ckpt")
    state = torch.load(fit, weights_only=True)["state_dict"]
    weights = [key for key in state if key.startswith("network.") and key.endswith("weight") and state[key].ndim == 4]
    moved = [not torch.equal(state[key], state[key.replace("network.", "teacher.", 1)]) for key in weights]
    assert any(moved)
    assert all(torch.isfinite(one).all() for key, one in state.items() if key.startswith("teacher."))


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ConfigError, match="needs a background class"):
        make_task("MARSSegmenterTask", class_names=["cat", "dog"], has_background=False)
    with pytest.raises(ConfigError, match=r"teacher_decay in \[0, 1\)"):
        make_task("MARSSegmenterTask", teacher_decay=1.0)


def test_an_image_of_background_alone_is_never_certain_of_a_tag():
    task, batch = make_task("MARSSegmenterTask"), make_batch([[]], [(32, 32)])
    batch["inputs"]["masks"].fill_(2)  # a mask from elsewhere with an object that no tag names
    batch["inputs"]["debiased"] = torch.zeros_like(batch["inputs"]["masks"])
    labels, certainty = task.completed(batch)
    assert (labels == 0).all()
    assert float(certainty.max()) == 0
