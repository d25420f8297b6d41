"""Inputs of several splits, and inputs that prediction alone reads: in keys, digests and start checks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.errors import ArtifactError
from dhr_lightning.provenance import recorded
from dhr_lightning.provenance.identity import StepIdentity
from dhr_lightning.provenance.recorded import check_inputs
from dhr_lightning.provenance.views import DataView, DataViews
from dhr_lightning.steps import Read, methods
from tests.data.datamodules import make_datamodule, put
from tests.provenance.conftest import INPUTS, Make

MASKS, FEATURES, TAGGER = "crf/1a2b/mask", "frozen/1a2b/features", "tag_head/3c4d"


@pytest.fixture
def light(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StepIdentity]:
    """The light segmenter, with a tagger."""
    monkeypatch.setitem(INPUTS, "light", {"masks": MASKS, "features": FEATURES, "tagger": TAGGER})

    def build(changes: dict[str, Any] | None = None, **inputs: str | None) -> StepIdentity:
        return make("light", changes, **inputs)

    return build


@pytest.mark.parametrize(
    ("read", "weights", "in_fit"),
    [
        (Read(("mask",), fit=True), False, True),
        (Read(("mask",), refresh=True), False, True),
        (Read(("mask",), predict=True), False, False),
        (Read(("mask",), fit=True, predict=True), False, True),
        (Read(("mask",)), False, False),
        (Read(), True, True),
        (Read(predict=True), True, False),
        (Read(fit=True, predict=True), True, True),
    ],
)
def test_weights_are_read_by_the_fit_unless_prediction_alone_needs_them(read: Read, weights: bool, in_fit: bool):
    assert (read.weights, read.in_fit) == (weights, in_fit)
    assert read.splits == ("train",)


def test_only_methods_on_stored_features_read_other_splits_than_the_training_images():
    found = {
        (name, port)
        for name, method in methods().items()
        for port, read in method.spec.reads.items()
        if set(read.splits) != {"train"}
    }
    assert found == {(name, "features") for name in ("tag_head", "light", "light_dhr")}


def test_what_prediction_alone_reads_moves_the_key_of_the_files_only(light: Callable[..., StepIdentity]):
    before = light()
    for after in (light(tagger="tag_head/9z8y"), light(tagger=None), light({"model.init_args.gate": True})):
        assert after.fit_key == before.fit_key
        assert after.run == before.run
        assert after.fit_digest() == before.fit_digest()
        assert after.output_key != before.output_key
    assert light(features="frozen/9z8y/features").fit_key != before.fit_key


def test_weights_that_prediction_alone_reads_are_in_the_digest_of_its_files_only(
    light: Callable[..., StepIdentity], make: Make, fitted: Callable[..., Path]
):
    def digests() -> tuple[set[str], str]:
        step = light()
        return {step.describe(step.address(kind), split).digest
                for kind, split in (("mask", "train"), ("prediction", "val"))}, step.fit_digest()  # fmt: skip

    files, fit = digests()
    assert f"weights {TAGGER}" in light().input_digests()
    assert f"weights {TAGGER}" not in light().input_digests(fit_only=True)
    for content in (b"weights", b"others"):
        fitted(TAGGER, content)
        after, fit_after = digests()
        assert fit_after == fit
        assert not after & files
        files |= after
    assert "weights cam/3c4d" in make("wss").input_digests(fit_only=True)
    assert set(make("crf").input_digests(fit_only=True)) == {"data/train"}
    assert set(make("crf").input_digests()) == {"data/train", "cam/1a2b/cam/train"}


def test_files_of_a_split_are_made_from_its_own_inputs_and_those_of_the_fit(light: Callable[..., StepIdentity], seal):
    made = {split: seal(FEATURES, split, of=split).digest for split in ("train", "val")}
    step = light()
    train = {"data/train", f"{MASKS}/train", f"{FEATURES}/train", f"weights {TAGGER}"}
    assert set(step.input_digests()) == set(step.input_digests("train")) == train
    of_val = step.input_digests("val")
    assert set(of_val) == {*train, f"{FEATURES}/val"}
    assert {split: of_val[f"{FEATURES}/{split}"] for split in made} == made
    assert of_val[f"{MASKS}/train"] == "absent"
    assert set(step.input_digests("val", fit_only=True)) == {*train, f"{FEATURES}/val"} - {f"weights {TAGGER}"}
    assert step.describe(step.address("prediction"), "val").inputs == {**of_val, "data/val": step.data.digest("val")}
    assert set(step.describe(step.address("mask"), "train").inputs) == train


def write(step: StepIdentity, kind: str, split: str) -> None:
    """Files of a finished output, and its manifest as of today."""
    address = step.address(kind)
    folder = step.store.folder(address, split)
    folder.mkdir(parents=True, exist_ok=True)
    for record in step.data.records(split):
        (folder / f"{record.id}.png").write_bytes(b"mask")
    step.describe(address, split).save(folder / "manifest.json")


def status(step: StepIdentity, kind: str, split: str) -> Status:
    address, ids = step.address(kind), [record.id for record in step.data.records(split)]
    return step.store.status(address, split, expected=step.describe(address, split), ids=ids)


def test_other_features_of_validation_images_make_their_predictions_stale_and_nothing_else(
    light: Callable[..., StepIdentity], seal: Callable[..., Manifest]
):
    for split in ("train", "val"):
        seal(FEATURES, split, side=32)
    step, fit = light(), light().fit_digest()
    write(step, "mask", "train")
    write(step, "prediction", "val")
    assert status(light(), "mask", "train").fresh
    assert status(light(), "prediction", "val").fresh
    seal(FEATURES, "val", side=64)
    assert status(light(), "mask", "train").fresh
    found = status(light(), "prediction", "val")
    assert found.state == "stale"
    assert f"{FEATURES}/val" in found.reason
    assert f"{FEATURES}/train" not in found.reason
    assert light().fit_digest() == fit
    seal(FEATURES, "val", side=32)
    assert status(light(), "prediction", "val").fresh
    seal(FEATURES, "train", side=64)
    assert light().fit_digest() != fit
    assert {status(light(), *one).state for one in (("mask", "train"), ("prediction", "val"))} == {"stale"}


@pytest.fixture
def store(voc_copy: Path, tmp_path: Path) -> ArtifactStore:
    """Masks of training images, and features of all splits, finished."""
    data = make_datamodule(voc_copy, tmp_path)
    put(data, MASKS, lambda _, size: (np.zeros(size, np.uint8),))
    for split in ("train", "val"):
        put(data, FEATURES, lambda _, __: (np.zeros((1, 2, 2), np.float16),), split=split)
    return data.store


def test_a_step_starts_only_if_its_inputs_of_every_split_are_there(
    light: Callable[..., StepIdentity], store: ArtifactStore
):
    check_inputs(light(), advice={})
    path = store.path(FEATURES, "val", "2007_000005")
    path.unlink()
    with pytest.raises(ArtifactError) as error:
        check_inputs(light({"data.step": "segmenter"}), advice={"features": "run uss", "masks": "run crf"})
    text = str(error.value)
    assert text.startswith(f"segmenter needs features, {FEATURES}/val, which is partial (1 of 2 files are missing in ")
    assert text.endswith(", first '2007_000005'). Run `run uss` first.")
    with pytest.raises(ArtifactError, match=r"'2007_000005'\)\.$"):
        check_inputs(light(), advice={})
    shutil.rmtree(store.folder(FEATURES, "val"))
    with pytest.raises(ArtifactError, match=f"light needs features, {FEATURES}/val, which is absent"):
        check_inputs(light(), advice={})


def test_a_step_that_reads_training_images_alone_needs_no_others(make: Make, store: ArtifactStore):
    shutil.rmtree(store.folder(FEATURES, "val"))
    check_inputs(make("mars", masks=MASKS, features=FEATURES), advice={})
    shutil.rmtree(store.folder(FEATURES, "train"))
    with pytest.raises(ArtifactError, match=f"mars needs features, {FEATURES}/train, which is absent"):
        check_inputs(make("mars", masks=MASKS, features=FEATURES), advice={})


def test_a_split_that_the_dataset_lacks_is_not_asked_for(
    light: Callable[..., StepIdentity], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(DataView, "splits", ("train",))
    shutil.rmtree(store.folder(FEATURES, "val"))
    check_inputs(light(), advice={})


def test_the_dataset_is_read_once_for_all_inputs(
    light: Callable[..., StepIdentity], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    given: list[object] = []
    status = recorded.recorded_status
    monkeypatch.setattr(recorded, "recorded_status", lambda *a, views: given.append(views) or status(*a, views=views))
    check_inputs(light(), advice={})
    assert len(given) == 3
    assert len(set(map(id, given))) == 1
    assert isinstance(given[0], DataViews)
