"""DHR at every step: its masks are those of DHR where crop and image are one, and nothing of them is learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import rebalance
from tests.pipeline_workspace import Workspace
from tests.task_samples import make_batch, make_task, predicting, training_loss

pytest_plugins = ["tests.pipeline_fixtures"]
SIZES = [(64, 64), (40, 56)]


@torch.no_grad()
@pytest.mark.parametrize("refine", ["pamr", "auto", "none"])
def test_the_masks_of_a_whole_image_are_those_that_dhr_makes_from_one_view(refine: str):
    torch.manual_seed(0)
    online = make_task("OnlineDHRTask", seed_view="paper", refine=refine)
    offline = make_task("DHRTask", seed_view="paper", refine=refine)
    offline.network.load_state_dict(online.network.state_dict())
    batch = make_batch([[1, 3], [2]], SIZES)
    found, expected = online.targets(online.network(batch["image"]), batch), offline.pseudo_masks(batch).mask
    assert torch.equal(found[batch["valid"]], expected[batch["valid"]].long())
    assert (found[~batch["valid"]] == 255).all()
    assert len(found[0].unique()) > 1


def test_the_step_uses_its_own_forward_pass_and_learns_nothing_from_making_masks(monkeypatch: pytest.MonkeyPatch):
    task, batch = make_task("OnlineDHRTask").train(), make_batch([[1], [2, 4]], [(64, 64), (64, 64)])
    given: list[RebalanceInputs] = []
    calls: list[int] = []
    task.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(
        "dhr_lightning.methods.rebalancing.rebalance",
        lambda inputs, **rest: (given.append(inputs), rebalance(inputs, **rest))[1],
    )
    output = task.network(batch["image"])
    masks = task.targets(output, batch)
    assert (masks.requires_grad, len(calls)) == (False, 1)
    (inputs,) = given
    assert not any(one.requires_grad for one in (inputs.cam, *inputs.wss))
    assert torch.equal(inputs.wss[-1], output.features[-1].detach())
    assert inputs.mask is batch["inputs"]["masks"]
    assert inputs.uss is batch["inputs"]["features"]
    calls.clear()
    training_loss(task, batch).backward()
    assert len(calls) == 1  # of batches: no second pass
    without = {name for name, one in task.network.named_parameters() if one.grad is None or not one.grad.any()}
    assert not without


def test_the_masks_follow_the_weights():
    task, batch = make_task("OnlineDHRTask"), make_batch([[1, 2]], [(64, 64)])
    with torch.no_grad():
        before = task.targets(task.network(batch["image"]), batch)
        task.network.classifier.weight.mul_(-1)
        for layer in task.network.encoder.parameters():
            layer.add_(0.3 * torch.randn_like(layer))
        after = task.targets(task.network(batch["image"]), batch)
    assert not torch.equal(before, after)


@pytest.mark.slow
def test_a_recipe_runs_with_it(workspace: Workspace, ran: list[str]):
    options = ["--swap", "dhr=dhr_online"]
    assert workspace.run(options=options) == 0
    assert "fit dhr" in ran
    outputs = dict(workspace.plan(options=options)["dhr"].outputs())
    assert sorted(outputs.values()) == ["train", "val"]
    folder = next(workspace.store.folder(*place) for place in outputs.items() if place[1] == "train")
    tags = {path.stem: path for path in sorted(folder.glob("*.png"))}
    assert len(tags) == 12
    assert len(np.unique(np.concatenate([read_mask(path).ravel() for path in tags.values()]))) > 2
    assert not list(Path(folder.parent).glob("round_*"))
    ran.clear()
    assert workspace.run(options=options) == 0
    assert ran == []


@torch.no_grad()
def test_training_images_get_rebalanced_masks_and_others_predictions():
    task, batch = predicting(make_task("OnlineDHRTask"), "train", "val"), make_batch([[1, 3], [2]], SIZES)
    (masks,) = task.predict_step(batch, batch_idx=0, dataloader_idx=0).values()
    for (found,), (expected,) in zip(masks, cut_masks(task.pseudo_masks(batch).mask, batch), strict=True):
        assert torch.equal(found, expected)
    plain = predicting(make_task("DHRTask"), "train", "val")
    plain.network.load_state_dict(task.network.state_dict())
    (kind,), (same,) = task.predict_step(batch, 0, 1), plain.predict_step(batch, 0, 1)
    assert kind == same == "prediction"
    for (found,), (expected,) in zip(
        task.predict_step(batch, 0, 1)[kind], plain.predict_step(batch, 0, 1)[kind], strict=True
    ):
        assert torch.equal(found, expected)
