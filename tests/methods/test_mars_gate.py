"""When MARS chooses its threshold, and what it records of its masks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.data.gate import Gate
from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.methods.masks.mars import task as mars
from dhr_lightning.methods.masks.mars.task import MARSTask
from tests.pipeline_workspace import Lines
from tests.stand_ins import keep, voc_module
from tests.task_samples import make_batch, make_task

pytest_plugins = ["tests.pipeline_fixtures"]


def fitted(**options: Any) -> MARSTask:
    task = make_task("MARSTask", refine="none", **options)
    task.training_step(make_batch([[1, 3], [2]], [(32, 48), (24, 36)]), 0)
    task.on_train_epoch_end()
    return task


class Run:
    """A trainer whose datamodule has 300 images; two batches are made, whatever is asked."""

    def __init__(self, task: MARSTask) -> None:
        self.task, self.asked, self.modes = task, [], []
        task._trainer = SimpleNamespace(datamodule=SimpleNamespace(records={"train": list(range(300))}.__getitem__))
        task.whole_batches = self.batches

    def batches(self, records: list[int], what: str) -> Iterator[Batch]:
        self.asked.append((records, what))
        for _ in range(2):
            self.modes.append((self.task.training, torch.is_grad_enabled()))
            yield make_batch([[1, 3], [2]], [(32, 48), (24, 36)])


def test_the_threshold_is_chosen_once_from_some_images(lines: Lines):
    task = fitted(threshold="auto").train()
    run = Run(task)
    assert task.threshold is None
    task.on_predict_start()
    expected = task.choose_threshold([make_batch([[1, 3], [2]], [(32, 48), (24, 36)])])
    assert task.threshold == pytest.approx(expected)
    ((records, what),) = run.asked
    assert (len(records), records[:3], what) == (128, [0, 2, 4], "threshold")
    assert run.modes == [(False, False)] * 2
    assert lines.messages == [f"threshold {expected:.3f}: Otsu's of the similarities in 128 training images"]
    task.on_predict_start()
    assert len(run.asked) == 1


def test_a_threshold_that_is_given_stays():
    task = fitted(threshold=0.25)
    run = Run(task)
    task.on_predict_start()
    assert (task.threshold, run.asked) == (0.25, [])


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.25, "auto"])
def test_the_decision_is_made_with_the_similarities_and_the_threshold(
    threshold: float | str, monkeypatch: pytest.MonkeyPatch
):
    task, batch, seen = fitted(threshold=threshold), make_batch([[1, 3], [2]], [(32, 48), (24, 36)]), {}

    def decide(image: Tensor, similarity: Tensor, **options: Any) -> Tensor:
        seen.update(options, image=image, similarity=similarity)
        return torch.ones(len(image), *image.shape[2:], dtype=torch.bool)

    monkeypatch.setattr(mars, "foreground_mask", decide)
    masks = task.predict_step(batch, 0)["mask"]
    assert seen["threshold"] == (task.choose_threshold([batch]) if threshold == "auto" else threshold)
    assert seen["refine"] is task.refiner
    assert seen["valid"] is batch["valid"]
    assert seen["image"] is batch["pixels"]
    cell = batch["inputs"]["features"][0, :, 2, 3] / batch["inputs"]["features"][0, :, 2, 3].norm()
    best = max(float(cell @ task.centroids[tag]) for tag in (1, 3))
    assert float(seen["similarity"][0, 2, 3]) == pytest.approx(max(best, 0), abs=1e-5)
    for (mask,), source, (height, width) in zip(masks, batch["inputs"]["masks"], [(32, 48), (24, 36)], strict=True):
        assert torch.equal(mask, source[:height, :width].to(torch.uint8))  # all foreground, so nothing is rejected


@pytest.mark.parametrize(("force", "source"), [(False, "wss/mask"), (True, "crf/mask")])
def test_what_the_masks_lost_is_recorded_beside_its_limits(tiny_voc: Path, tmp_path: Path, force: bool, source: str):
    """MARS loses both cats of the masks that it was told to start from; these are harmful, and others show no cat."""
    datamodule = voc_module(tiny_voc, tmp_path, "mars", inputs={"masks": "crf/mask"})
    before, after = {}, {}
    for record in datamodule.records("train"):
        mask = np.zeros((10, 10), np.uint8)
        mask[:6] = record.tags[0]
        if len(record.tags) > 1:
            mask[6:8] = record.tags[1]
        before[record.id], after[record.id] = (mask,), (np.where(mask == 8, 0, mask).astype(np.uint8),)
    keep(datamodule, "crf/mask", "train", before)
    keep(datamodule, "wss/mask", "train", after)
    keep(datamodule, "mars/mask", "train", after)
    gate = Gate("wss/mask", 1.0, 1.0, 0.05, 0.45)
    manifest = datamodule.store.manifest("crf/mask", "train").with_info(gate=gate.record())
    manifest.save(datamodule.store.folder("crf/mask", "train") / "manifest.json")
    task = make_task("MARSTask", class_names=list(VOC_CLASSES), max_lost_tags=0.2, max_rejected=0.9, force_masks=force)
    assert task.inference_info() == {}  # outside a run there is nothing to measure
    task._trainer = SimpleNamespace(datamodule=datamodule)
    datamodule.trainer = SimpleNamespace(lightning_module=task)
    made = task.inference_info()
    assert made["threshold"] == task.threshold == task.hparams.threshold
    assert made["gate"] == {
        "source": source, "lost_tags": pytest.approx(force * 2 / 6), "rejected": pytest.approx(force * 120 / 280),
        "max_lost_tags": 0.2, "max_rejected": 0.9, "harmful": force,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["max_lost_tags", "max_rejected"])
def test_limits_are_shares(name: str):
    for value in (0, 1, 0.5):
        make_task("MARSTask", **{name: value})
    for value in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=rf"{name} in \[0, 1\], but got {value}"):
            make_task("MARSTask", **{name: value})


@pytest.mark.parametrize("threshold", [0, 0.0, -0.5, 1, "otsu"])
def test_a_threshold_outside_its_range_is_refused(threshold: Any):
    with pytest.raises(ConfigError, match=r"threshold in \(0, 1\) or auto"):
        make_task("MARSTask", threshold=threshold)
