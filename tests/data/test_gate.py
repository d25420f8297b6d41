from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.gate import Gate, address_to_read, gate_notes, measure_removal
from dhr_lightning.errors import ArtifactError
from dhr_lightning.provenance.identity import StepIdentity
from dhr_lightning.provenance.recorded import check_inputs
from tests.data.datamodules import make_datamodule

CLASSES = ClassSet(("background", "cat", "dog", "car"))
BEFORE = {
    "a": [[1, 1, 0, 255], [2, 2, 0, 0]],  # cat and dog
    "b": [[3, 3, 3, 3], [0, 0, 0, 0]],  # car; tagged dog, too, which the source has lost already
    "c": [[0, 0, 0, 0], [0, 0, 0, 255]],  # tagged cat, nothing in the source
}
AFTER = {
    "a": [[1, 0, 0, 255], [0, 255, 0, 0]],  # half of the cat is left, nothing of the dog
    "b": [[3, 3, 3, 0], [0, 0, 0, 0]],
    "c": [[0, 0, 0, 0], [0, 0, 0, 255]],
}
TAGS = {"a": (1, 2), "b": (2, 3), "c": (1,)}
BASE, WSS, MARS = "crf/1a2b/mask", "wss/1a2b/mask", "mars/1a2b/mask"
RECORDS = [Record(name, Path(f"{name}.jpg"), tags) for name, tags in TAGS.items()]


def write_masks(store: ArtifactStore, address: str, masks: dict[str, Any], **info: Any) -> None:
    """A sealed artifact with these masks."""
    ids = list(masks)
    identity = Manifest.create(address, store.dataset, "train", ids=ids, settings={})
    with store.open_writer(address, "train", identity=identity, ids=ids, palette=CLASSES.palette) as writer:
        for name, mask in masks.items():
            writer.write(name, np.array(mask, np.uint8))
        writer.seal(**info)


def gate(lost: float, rejected: float = 0.5, *, source: str = BASE) -> dict[str, Any]:
    return Gate(source, lost, rejected, max_lost_tags=0.1, max_rejected=0.6).record()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts", "voc")
    write_masks(store, BASE, BEFORE)
    write_masks(store, MARS, AFTER)
    return store


def measure(store: ArtifactStore) -> tuple[float, float]:
    return measure_removal(store, MARS, RECORDS, source=BASE, classes=CLASSES)


def test_shares_by_hand(store: ArtifactStore):
    assert measure(store) == pytest.approx((1 / 3, 4 / 8))  # of cat, dog and car the dog; 4 of 8 pixels


@pytest.mark.parametrize(
    ("lost", "rejected", "harmful"),
    [(0.0, 0.0, False), (0.1, 0.6, False), (0.101, 0.0, True), (0.0, 0.601, True), (1.0, 1.0, True)],
)
def test_each_limit_may_be_reached_but_not_exceeded(lost: float, rejected: float, harmful: bool):
    assert gate(lost, rejected) == {
        "source": BASE, "lost_tags": lost, "rejected": rejected, "max_lost_tags": 0.1, "max_rejected": 0.6,
        "harmful": harmful,
    }  # fmt: skip


def test_nothing_is_lost_where_nothing_was_removed_or_nothing_was_there(store: ArtifactStore):
    write_masks(store, MARS, BEFORE)
    assert measure(store) == (0, 0)
    empty = {name: np.zeros((2, 4)) for name in BEFORE}
    write_masks(store, BASE, empty)
    write_masks(store, MARS, empty)
    assert measure(store) == (0, 0)


def test_without_background_class_0_counts_as_foreground(store: ArtifactStore):
    classes = ClassSet(("cat", "dog", "car", "bus"), has_background=False)
    records = [Record("a", Path("a.jpg"), (0, 1))]
    found = measure_removal(store, MARS, records, source=BASE, classes=classes)
    assert found == pytest.approx((0, 3 / 7))


def test_a_manifest_gives_the_gate_back(store: ArtifactStore):
    assert Gate.read(None) is None
    assert Gate.read(store.manifest(MARS, "train")) is None
    write_masks(store, MARS, AFTER, gate=gate(0.2))
    assert Gate.read(store.manifest(MARS, "train")) == Gate(BASE, 0.2, 0.5, 0.1, 0.6)


def test_harmful_masks_are_replaced_by_their_source_unless_forced(store: ArtifactStore):
    assert address_to_read(store, MARS) == MARS  # no gate
    write_masks(store, MARS, AFTER, gate=gate(0.1))
    assert address_to_read(store, MARS) == MARS
    write_masks(store, MARS, AFTER, gate=gate(0.2))
    assert address_to_read(store, MARS) == BASE
    assert address_to_read(store, MARS, force=True) == MARS
    assert address_to_read(store, "uss/1a2b/features") == "uss/1a2b/features"  # absent
    assert address_to_read(store, "wss/1a2b") == "wss/1a2b"  # the weights of a run


def test_a_source_that_is_harmful_itself_is_replaced_as_well(store: ArtifactStore):
    write_masks(store, WSS, AFTER, gate=gate(0.9))
    write_masks(store, MARS, AFTER, gate=gate(0.9, source=WSS))
    assert address_to_read(store, MARS) == BASE


def step(tmp_path: Path, root: Path, **arguments: Any) -> StepIdentity:
    """DHR on the masks of MARS."""
    data = {"dataset": "voc", "root": str(root), "workspace": str(tmp_path), "method": "dhr", "step": "last"}
    return StepIdentity({"model": {"init_args": arguments}, "data": {**data, "inputs": {"masks": MARS}}})


@pytest.mark.parametrize(
    ("lost", "force", "read"), [(0.2, False, BASE), (0.2, True, MARS), (0.0, False, MARS), (0.0, True, MARS)]
)
def test_planning_and_datamodule_read_the_same_masks(
    store: ArtifactStore, tmp_path: Path, tiny_voc: Path, lost: float, force: bool, read: str
):
    write_masks(store, MARS, AFTER, gate=gate(lost))
    identity = step(tmp_path, tiny_voc, force_masks=force)
    assert identity.used_inputs() == {"masks": read}
    described = identity.describe(identity.address("prediction"), "train")
    assert set(described.inputs) == {"data/train", f"{read}/train"}
    task = {"hparams": {"force_masks": force}}
    datamodule = make_datamodule(tiny_voc, tmp_path, identity.spec, task=task, inputs={"masks": MARS})
    loader = datamodule.whole_dataloader(datamodule.records("train"), when="refresh")
    assert loader.dataset.inputs["masks"].path("a") == store.path(read, "train", "a")


def test_a_verdict_on_masks_moves_no_key(store: ArtifactStore, tmp_path: Path, tiny_voc: Path):
    before = step(tmp_path, tiny_voc)
    digest = before.fit_digest()
    write_masks(store, MARS, AFTER, gate=gate(0.9))
    after = step(tmp_path, tiny_voc)
    assert (after.fit_key, after.output_key) == (before.fit_key, before.output_key)
    assert after.fit_digest() != digest  # but the fit is out of date


@pytest.mark.parametrize("damaged", [BASE, MARS])
def test_a_step_needs_the_masks_that_it_names_and_those_that_it_reads(
    store: ArtifactStore, tmp_path: Path, tiny_voc: Path, damaged: str
):
    write_masks(store, MARS, AFTER, gate=gate(0.2))
    identity = step(tmp_path, tiny_voc)
    check_inputs(identity, advice={})
    store.path(damaged, "train", "b").unlink()
    wanted = rf"last needs masks, {damaged}/train, which is partial \(1 of 3 files.*\. Run `make it` first"
    with pytest.raises(ArtifactError, match=wanted):
        check_inputs(identity, advice={"masks": "make it"})
    with pytest.raises(ArtifactError, match=r"\)\.$"):
        check_inputs(identity, advice={})


def test_notes_tell_what_was_removed_and_whether_it_is_used(store: ArtifactStore):
    outputs = {(BASE, "train"): "propagation", (MARS, "train"): "mars", (WSS, "train"): "baseline"}
    assert gate_notes(store, outputs) == []
    write_masks(store, MARS, AFTER, gate=gate(0.05))
    assert gate_notes(store, outputs) == [
        "mars removes the last pixel of 5.0 % of the tags that propagation has (limit 10 %) and 50.0 % of its "
        "foreground pixels (limit 60 %)."
    ]
    assert gate_notes(store, {(BASE, "train"): "propagation"}) == []  # of what is looked at
    write_masks(store, MARS, AFTER, gate=gate(0.995))
    (note,) = gate_notes(store, outputs)
    assert note.startswith("mars is harmful: it removes the last pixel of 99.5 % of the tags")
    assert note.endswith("It is not used; later steps read propagation.")

    identity = Manifest.create(WSS, "voc", "train", ids=["a"], settings={}, inputs={f"{MARS}/train": "0"})
    with store.open_writer(WSS, "train", identity=identity, ids=["a"], palette=CLASSES.palette) as writer:
        writer.write("a", np.zeros((2, 4), np.uint8))
        writer.seal()
    (note,) = gate_notes(store, outputs)
    assert note.endswith("It is used all the same (model.init_args.force_masks: true).")
