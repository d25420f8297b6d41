"""What a prediction leaves on disk: files, locks and manifests, of whole, interrupted and shared runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.artifacts.manifest import digest_file
from dhr_lightning.callbacks import writers
from dhr_lightning.callbacks.writers import ArtifactWriters, prediction_refiner
from dhr_lightning.data.datamodule import WSSSDataModule
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.data.gate import Gate
from dhr_lightning.errors import ArtifactError, LockError
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.steps import StepSpec, Write
from tests.pipeline_workspace import Lines
from tests.stand_ins import TAGS, Clock, keep, trainer_of, voc_module
from tests.task_samples import make_task

pytest_plugins = ["tests.pipeline_fixtures"]
IDS = list(TAGS)


@pytest.fixture
def datamodule(tiny_voc: Path, tmp_path: Path) -> WSSSDataModule:
    return voc_module(tiny_voc, tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"weights")
    return path


def segmenter() -> BaseTask:
    """A task that writes one kind of two splits."""
    return make_task("WSSTask", class_names=list(VOC_CLASSES))


def propagation() -> BaseTask:
    """A task that writes one kind of one split, and was given its background score."""
    return make_task("PropagationTask", class_names=list(VOC_CLASSES), refine="pamr", background=0.25)


TWO_KINDS = StepSpec("two", "none", "writes two kinds of one split", writes={"cam": Write(), "mask": Write()})


def masks(count: int, value: int) -> list[tuple[Tensor]]:
    return [(torch.full((4, 6), value + index),) for index in range(count)]


def predict(
    callback: ArtifactWriters, trainer: Any, task: Any, ids: list[str], loader: int = 0, **outputs: Any
) -> None:
    callback.on_predict_batch_end(trainer, task, outputs, {"id": ids}, 0, loader)


def started(datamodule: WSSSDataModule, weights: Path | None, task: Any, **rank: Any) -> tuple[ArtifactWriters, Any]:
    callback, trainer = ArtifactWriters(weights), trainer_of(datamodule, **rank)
    datamodule.trainer = SimpleNamespace(lightning_module=task)
    callback.setup(trainer, task, "predict")
    return callback, trainer


def test_every_split_gets_its_own_files_and_a_manifest_that_says_how_they_were_made(
    datamodule: WSSSDataModule, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    clock, task = Clock.of(monkeypatch, writers), segmenter()
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS[:3], mask=masks(3, 1))
    predict(callback, trainer, task, IDS[3:], mask=masks(1, 7))
    predict(callback, trainer, task, ["2007_000005", "2007_000006"], 1, prediction=masks(2, 10))
    clock.now += 90
    assert datamodule.store.manifest("wss/mask", "train") is None
    callback.on_predict_end(trainer, task)
    callback.teardown(trainer, task, "predict")
    store = datamodule.store
    found = {image_id: read_mask(store.path("wss/mask", "train", image_id)) for image_id in IDS}
    assert [np.unique(mask).tolist() for mask in found.values()] == [[1], [2], [3], [7]]
    assert read_mask(store.path("wss/prediction", "val", "2007_000006")).tolist() == [[11] * 6] * 4
    for address, split in (("wss/mask", "train"), ("wss/prediction", "val")):
        manifest = store.manifest(address, split)
        assert manifest.checkpoint == {"path": str(weights.resolve()), "sha256": digest_file(weights)}
        assert manifest.info["step"] == "wss"
        assert manifest.info["seconds"] == 90
        assert manifest.info["refine"] == "none"
        assert manifest.info["protocol"]["tags"] == (split == "train")
        assert f"data/{split}" in manifest.inputs
        assert store.status(address, split).fresh
    assert store.addresses() == [("wss/mask", "train"), ("wss/prediction", "val")]


def test_a_continued_run_leaves_out_the_images_that_have_all_their_files(
    datamodule: WSSSDataModule, weights: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    task = make_task("CAMTask", class_names=list(VOC_CLASSES))
    datamodule.method = None
    monkeypatch.setattr(type(datamodule), "spec", TWO_KINDS)
    callback, trainer = started(datamodule, weights, task)
    assert datamodule.written == frozenset()
    cams = [(torch.tensor([8]), torch.full((1, 2, 2), 0.5))] * 2
    predict(callback, trainer, task, IDS[:2], cam=cams, mask=masks(2, 0))
    predict(callback, trainer, task, IDS[2:3], cam=cams[:1])
    callback.on_exception(trainer, task, KeyboardInterrupt())
    callback.teardown(trainer, task, "predict")  # as after an exception: there is nothing to seal any more
    assert lines.messages == []
    callback, trainer = started(datamodule, weights, task)
    assert datamodule.written == {("train", IDS[0]), ("train", IDS[1])}
    assert lines.messages == ["cam: continuing, 2 images are already written"]
    predict(callback, trainer, task, IDS[2:], cam=cams, mask=masks(2, 0))
    callback.on_predict_end(trainer, task)
    keys, cam = read_cam(datamodule.store.path("None/cam", "train", IDS[3]))
    assert (keys.dtype, keys.tolist()) == (np.int16, [8])
    assert (cam.dtype, cam.tolist()) == (np.float16, [[[0.5, 0.5], [0.5, 0.5]]])
    assert datamodule.store.status("None/mask", "train").fresh


def test_what_needs_no_fit_needs_no_weights_and_records_how_it_was_made(tiny_voc: Path, tmp_path: Path):
    datamodule, task = voc_module(tiny_voc, tmp_path, "crf", inputs={"cam": "cam/cam"}), propagation()
    callback, trainer = started(datamodule, None, task)
    predict(callback, trainer, task, IDS, mask=masks(4, 1))
    callback.on_predict_end(trainer, task)
    manifest = datamodule.store.manifest("crf/mask", "train")
    assert manifest.checkpoint is None
    assert (manifest.info["refine"], manifest.info["background"]) == ("pamr", 0.25)
    assert manifest.info["background_rule"] == "given"


def test_a_run_that_finds_every_file_seals_without_predicting(datamodule: WSSSDataModule, weights: Path):
    task = segmenter()
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS, mask=masks(4, 1))
    predict(callback, trainer, task, ["2007_000005", "2007_000006"], 1, prediction=masks(2, 1))
    callback.on_exception(trainer, task, KeyboardInterrupt())
    assert datamodule.store.manifest("wss/mask", "train") is None
    callback, trainer = started(datamodule, weights, task)
    assert len(datamodule.written) == 6
    callback.teardown(trainer, task, "predict")
    assert datamodule.store.status("wss/mask", "train").fresh
    assert datamodule.store.status("wss/prediction", "val").fresh


def test_a_run_with_other_weights_starts_again(datamodule: WSSSDataModule, weights: Path, tmp_path: Path):
    task = segmenter()
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS, mask=masks(4, 1))
    callback.on_exception(trainer, task, KeyboardInterrupt())
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"other weights")
    callback, trainer = started(datamodule, other, task)
    assert datamodule.written == frozenset()
    assert not datamodule.store.path("wss/mask", "train", IDS[0]).exists()
    callback.on_exception(trainer, task, KeyboardInterrupt())


def test_a_batch_with_too_few_masks_is_an_error(datamodule: WSSSDataModule, weights: Path):
    task = segmenter()
    callback, trainer = started(datamodule, weights, task)
    with pytest.raises(ValueError, match="shorter"):
        predict(callback, trainer, task, IDS[:2], mask=masks(1, 1))
    callback.on_exception(trainer, task, ValueError())


def test_missing_files_are_not_sealed(datamodule: WSSSDataModule, weights: Path):
    task = segmenter()
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS[:2], mask=masks(2, 1))
    with pytest.raises(ArtifactError, match="2 of 4 files are missing"):
        callback.on_predict_end(trainer, task)
    callback.on_exception(trainer, task, ArtifactError("missing"))


def test_the_folders_are_locked_until_the_run_ends_or_fails(datamodule: WSSSDataModule, weights: Path):
    task = segmenter()
    callback, trainer = started(datamodule, weights, task)
    with pytest.raises(LockError):
        started(datamodule, weights, task)
    callback.on_exception(trainer, task, RuntimeError())
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS, mask=masks(4, 1))
    predict(callback, trainer, task, ["2007_000005", "2007_000006"], 1, prediction=masks(2, 1))
    callback.on_predict_end(trainer, task)
    callback, trainer = started(datamodule, weights, task)
    callback.on_exception(trainer, task, RuntimeError())


def gated(datamodule: WSSSDataModule, address: str, lost: float) -> Gate:
    """Seal masks with a gate."""
    sizes = [(48, 64), (64, 48), (56, 40), (64, 64)]
    files = {name: (np.zeros(size, np.uint8),) for name, size in zip(IDS, sizes, strict=True)}
    keep(datamodule, address, "train", files)
    gate = Gate("crf/mask", lost, 0.0, 0.05, 0.45)
    manifest = datamodule.store.manifest(address, "train").with_info(gate=gate.record())
    manifest.save(datamodule.store.folder(address, "train") / "manifest.json")
    return gate


@pytest.mark.parametrize("lost", [0.0, 0.5])
def test_a_fit_says_that_it_starts_from_other_masks_than_those_named(
    tiny_voc: Path, tmp_path: Path, lines: Lines, lost: float
):
    datamodule = voc_module(tiny_voc, tmp_path, step="baseline", inputs={"masks": "mars/mask"})
    gate = gated(datamodule, "mars/mask", lost)
    ArtifactWriters().setup(trainer_of(datamodule), segmenter(), "fit")
    said = f"baseline: starts from crf/mask, not from mars/mask: {gate.verdict()}"
    assert lines.messages == ([said] if lost else [])


@pytest.mark.parametrize("lost", [0.0, 0.5])
def test_a_step_with_a_gate_says_what_it_removed(
    tiny_voc: Path, tmp_path: Path, weights: Path, lines: Lines, lost: float, monkeypatch: pytest.MonkeyPatch
):
    datamodule = voc_module(tiny_voc, tmp_path, "mars", inputs={"masks": "crf/mask"})
    gate, task = Gate("crf/mask", lost, 0.25, 0.05, 0.45), make_task("MARSTask", class_names=list(VOC_CLASSES))
    monkeypatch.setattr(task, "inference_info", lambda: {"gate": gate.record()})
    callback, trainer = started(datamodule, weights, task)
    predict(callback, trainer, task, IDS, mask=masks(4, 0))
    callback.on_predict_end(trainer, task)
    folder = datamodule.store.folder("mars/mask", "train")
    text = f"mars/mask/train: {gate.verdict()}"
    assert lines.messages == [f"{text}. They stay in {folder} to look at" if lost else text]


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_nothing_but_prediction_touches_the_folders(datamodule: WSSSDataModule, tmp_path: Path, stage: str):
    callback, trainer = ArtifactWriters(), trainer_of(datamodule)
    callback.setup(trainer, segmenter(), stage)
    callback.teardown(trainer, segmenter(), stage)
    assert not (tmp_path / "artifacts").exists()


def test_prediction_without_known_weights_is_refused_before_any_work(datamodule: WSSSDataModule, tmp_path: Path):
    with pytest.raises(ArtifactError, match="Add --ckpt_path"):
        ArtifactWriters().setup(trainer_of(datamodule), segmenter(), "predict")
    assert not (tmp_path / "artifacts").exists()


def test_all_ranks_write_and_the_first_one_seals_when_they_have_met(tiny_voc: Path, tmp_path: Path, weights: Path):
    task, runs = segmenter(), []
    for rank in (0, 1):
        runs.append(started(voc_module(tiny_voc, tmp_path), weights, task, rank=rank))
        predict(*runs[-1], task, IDS[rank::2], mask=masks(2, 1))
        predict(*runs[-1], task, [f"2007_00000{5 + rank}"], 1, prediction=masks(1, 1))
    store = runs[0][1].datamodule.store
    (first, first_trainer), (second, second_trainer) = runs
    second.on_predict_end(second_trainer, task)
    assert store.manifest("wss/mask", "train") is None
    sealed_at_barrier: list[bool] = []
    first_trainer.strategy.barrier = lambda name: sealed_at_barrier.append(store.manifest("wss/mask", "train") is None)
    first.on_predict_end(first_trainer, task)
    assert sealed_at_barrier == [True]
    assert store.status("wss/mask", "train").fresh
    assert second_trainer.barriers == ["declared", "declared", "listed", "written"]


def test_the_refinement_of_predictions_is_that_of_the_task_or_of_its_protocol(lines: Lines):
    tasks = {
        "crf: refinement: PAMR on cpu": propagation(),
        "wss: refinement: dense CRF by lattice on cpu": make_task("WSSTask", test_crf={"backend": "lattice"}),
    }
    for task in [*tasks.values(), make_task("DHRTask")]:
        ArtifactWriters().on_predict_start(trainer_of(), task)
    assert lines.messages == list(tasks)
    assert prediction_refiner(make_task("DHRTask", refine="lattice")) is None  # that one refines what it trains on
    assert prediction_refiner(SimpleNamespace()) is None
