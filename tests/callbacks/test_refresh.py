import csv
import shutil
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.callbacks.refresh import PseudoMaskRefresh, weights_digest
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.base import cut_masks
from dhr_lightning.methods.masks.dhr.task import DHRTask
from tests.pipeline_workspace import ROUNDS, Lines, Workspace
from tests.stand_ins import compared
from tests.task_samples import make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


def masks_of(workspace: Workspace, kind: str) -> dict[str, np.ndarray]:
    ids = [f"train_{number:04d}" for number in range(1, 13)]
    return {image_id: read_mask(workspace.path(kind, image_id)) for image_id in ids}


def test_the_change_of_every_round_is_logged(workspace: Workspace):
    with (workspace.run_folder("dhr") / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["refresh/changed_pixels"]]
    masks = [masks_of(workspace, kind) for kind in ("mars/train", *ROUNDS)]
    records = WSSSDataModule(root=str(workspace.data)).records("train")
    assert len(rows) == 2
    for row, before, after in zip(rows, masks[:-1], masks[1:], strict=True):
        changed = np.mean([np.mean(before[name] != after[name]) for name in before])
        pairs = [(tag, after[record.id]) for record in records for tag in record.tags]
        vanished = np.mean([not (mask == tag).any() for tag, mask in pairs])
        assert float(row["refresh/changed_pixels"]) == pytest.approx(changed)
        assert float(row["refresh/missing_tags"]) == pytest.approx(vanished)
        assert 0 < float(row["refresh/miou"]) < 1


def test_comparison_of_masks_with_themselves_and_without_truth(workspace: Workspace):
    datamodule = WSSSDataModule(root=str(workspace.data), workspace=".")
    first, second = (workspace.place(name)[0] for name in ROUNDS)
    figures = compared(datamodule, first, first)
    assert figures["changed_pixels"] == 0
    records = [record.__class__(record.id, record.image, record.tags) for record in datamodule.records("train")]
    datamodule._records["train"] = records
    assert set(compared(datamodule, first, second)) == {
        "changed_pixels",
        "missing_tags",
    }


def forget_dhr(workspace: Workspace) -> None:
    shutil.rmtree(workspace.folder / "artifacts" / "microworld" / "dhr")
    shutil.rmtree(workspace.folder / "runs" / "microworld" / "dhr")


def test_every_epoch_trains_on_the_round_made_before_it(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    """Masks that hold nothing but the number of their round tell which one a batch was read from, by a worker."""
    seen: dict[int, set[int]] = {}
    step = DHRTask.training_step

    def numbered(task: DHRTask, inputs: Any) -> Any:
        current = task.trainer.datamodule.mask_round
        return SimpleNamespace(mask=torch.full_like(inputs.mask, 0 if current is None else current + 1))

    def watched(task: DHRTask, batch: Any, index: int) -> Any:
        assert task.training
        found = set(batch["inputs"]["masks"].unique().tolist()) - {255}
        seen[task.current_epoch] = seen.get(task.current_epoch, set()) | found
        return step(task, batch, index)

    monkeypatch.setattr(DHRTask, "rebalanced", numbered)
    monkeypatch.setattr(DHRTask, "training_step", watched)
    forget_dhr(workspace)
    every = "--dhr.trainer.callbacks=[{class_path: PseudoMaskRefresh, init_args: {every: 2}}]"
    changes = ("--dhr.data.num_workers=1", "--dhr.trainer.max_epochs=5", every)
    assert workspace.stage("stage3_dhr", *changes) == 0
    assert seen == {0: {0}, 1: {0}, 2: {1}, 3: {1}, 4: {2}}
    address = workspace.place("dhr/round_00/train", *changes)[0].rpartition("/")[0]
    assert workspace.store.rounds(address, "train") == [0, 1, 2]
    lines.clear()
    assert workspace.stage("stage3_dhr", *changes) == 0
    assert lines.messages == ["stage3_dhr: up to date"]


def test_rounds_record_weights_recipe_and_refinement(workspace: Workspace):
    first, second = (workspace.manifest(name) for name in ROUNDS)
    assert first.checkpoint["sha256"] != second.checkpoint["sha256"]
    assert first.inputs == second.inputs
    inputs = workspace.plan()["dhr"].identity.inputs
    artifacts = {f"{inputs[port]}/train" for port in ("masks", "features")}
    assert {f"weights {inputs['init']}", *artifacts, "data/train"} == set(first.inputs)
    assert first.info["step"] == "dhr"
    assert first.info["config"]["data"]["inputs"] == dict(inputs)
    assert first.info["refine"] in ("pydensecrf", "lattice")


def test_masks_come_from_the_student_and_predictions_from_the_average(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    folder = workspace.run_folder("dhr") / "version_0" / "checkpoints"
    last, before = (torch.load(folder / name, weights_only=True) for name in ("last.ckpt", "previous.ckpt"))
    digests = {name: digest_of(before[name]) for name in ("state_dict", "student_state_dict")}
    made_with = workspace.manifest(ROUNDS[1]).checkpoint["sha256"]
    assert made_with == digests["student_state_dict"] != digests["state_dict"]

    used, predict = set(), DHRTask.predict_step

    def watched(task: DHRTask, *arguments: Any) -> Any:
        used.add(weights_digest(task))
        return predict(task, *arguments)

    monkeypatch.setattr(DHRTask, "predict_step", watched)
    shutil.rmtree(workspace.artifact("dhr/val"))
    assert workspace.stage("stage3_dhr") == 0
    assert used == {digest_of(last["state_dict"])} != {digest_of(last["student_state_dict"])}


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    return weights_digest(SimpleNamespace(state_dict=lambda: weights))


def test_a_round_is_made_in_evaluation_mode_and_training_goes_on_after_it(monkeypatch: pytest.MonkeyPatch):
    task = make_task("DHRTask", refine="none")
    task.network.encoder.stages[-1] = torch.nn.Sequential(task.network.encoder.stages[-1], torch.nn.Dropout(0.5))
    task.eval()
    batches = [make_batch([[1, 2], [3]], [(64, 48), (48, 64)]), make_batch([[1, 4], [2, 3]], [(48, 48), (64, 64)])]
    expected = [mask for batch in batches for mask in task.pseudo_masks(batch).mask.to(torch.uint8).numpy()]
    before, written = {name: tensor.clone() for name, tensor in task.state_dict().items()}, []
    noisy = [mask for batch in batches for mask in task.train().pseudo_masks(batch).mask.to(torch.uint8).numpy()]
    assert any((one != other).any() for one, other in zip(expected, noisy, strict=True))
    task.load_state_dict(before)

    monkeypatch.setattr(task, "whole_batches", lambda records, what, *, when: batches)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    writer = SimpleNamespace(write=lambda image_id, mask: written.append(mask))
    for training in (True, False):
        written.clear()
        task.train(training)
        PseudoMaskRefresh()._write(trainer, task, writer, batches, "round 0")
        sizes = [geometry.size for batch in batches for geometry in batch["geometry"]]
        for found, mask, (height, width) in zip(written, expected, sizes, strict=True):
            assert np.array_equal(found, mask[:height, :width])
        assert {module.training for module in task.network.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())


@pytest.mark.parametrize("half", ["mask_inputs", "rebalanced", "both"])
def test_images_that_do_not_fit_together_are_refreshed_one_by_one(half: str, monkeypatch: pytest.MonkeyPatch):
    task = make_task("DHRTask", refine="none").eval()
    batches = [make_batch([[1, 2], [3]], [(64, 48), (48, 64)]), make_batch([[1, 4]], [(48, 48)])]
    batches[0]["id"], batches[1]["id"] = ["a", "b"], ["c"]
    expected = [mask.numpy() for batch in batches for (mask,) in cut_masks(task.pseudo_masks(batch).mask, batch)]
    seen: dict[str, list[int]] = {"mask_inputs": [], "rebalanced": []}

    def small(name: str, work: Any) -> Any:
        def limited(given: Any) -> Any:
            count = len(given["id"] if name == "mask_inputs" else given.image)
            seen[name].append(count)
            if count > 1 and half in (name, "both"):
                raise torch.cuda.OutOfMemoryError
            return work(given)

        return limited

    for name in seen:
        monkeypatch.setattr(task, name, small(name, getattr(task, name)))
    monkeypatch.setattr(task, "whole_batches", lambda records, what, *, when: batches)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    written: list[tuple[str, np.ndarray]] = []
    writer = SimpleNamespace(write=lambda image_id, mask: written.append((image_id, mask)))
    PseudoMaskRefresh()._write(trainer, task, writer, batches, "round 0")
    assert [name for name, _ in written] == ["a", "b", "c"]
    assert all(np.array_equal(found, mask) for (_, found), mask in zip(written, expected, strict=True))
    assert seen["mask_inputs"] == [2, 1, 1, 1] or half == "rebalanced"
    assert seen["rebalanced"] == ([1, 1, 1] if half != "rebalanced" else [2, 1, 1, 1])
    assert torch.is_grad_enabled()


def test_the_digest_follows_every_weight():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).to(torch.bfloat16)
    before = weights_digest(network)
    assert weights_digest(network.to(memory_format=torch.channels_last)) == before
    network[1].num_batches_tracked += 1
    after = weights_digest(network)
    assert after != before
    with torch.no_grad():
        network[0].bias[1] += 1
    assert weights_digest(network) not in (before, after)


def test_a_number_of_epochs_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"every >= 1, but got 0"):
        PseudoMaskRefresh(every=0)
