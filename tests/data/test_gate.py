from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datamodule import Needs, WSSSDataModule
from dhr_lightning.data.gate import Gate, gate_notes, kind_to_read, measure_removal
from dhr_lightning.errors import ArtifactError
from dhr_lightning.provenance import identity
from dhr_lightning.provenance.recorded import check_inputs

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
RECORDS = [Record(name, Path(f"{name}.jpg"), tags) for name, tags in TAGS.items()]


def write_masks(store: ArtifactStore, kind: str, masks: dict[str, Any], **info: Any) -> None:
    """A sealed artifact with these masks."""
    ids = list(masks)
    identity = Manifest.create(kind, store.dataset, "train", ids=ids, settings={})
    with store.open_writer(kind, "train", identity=identity, ids=ids, palette=CLASSES.palette) as writer:
        for name, mask in masks.items():
            writer.write(name, np.array(mask, np.uint8))
        writer.seal(**info)


def gate(lost: float, rejected: float = 0.5, *, source: str = "base_mask") -> dict[str, Any]:
    return Gate(source, lost, rejected, max_lost_tags=0.1, max_rejected=0.6).record()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts", "voc")
    write_masks(store, "base_mask", BEFORE)
    write_masks(store, "mars_mask", AFTER)
    return store


def measure(store: ArtifactStore) -> tuple[float, float]:
    return measure_removal(store, "mars_mask", RECORDS, source="base_mask", classes=CLASSES)


def test_shares_by_hand(store: ArtifactStore):
    assert measure(store) == pytest.approx((1 / 3, 4 / 8))  # of cat, dog and car the dog; 4 of 8 pixels


@pytest.mark.parametrize(
    ("lost", "rejected", "harmful"),
    [(0.0, 0.0, False), (0.1, 0.6, False), (0.101, 0.0, True), (0.0, 0.601, True), (1.0, 1.0, True)],
)
def test_each_limit_may_be_reached_but_not_exceeded(lost: float, rejected: float, harmful: bool):
    assert gate(lost, rejected) == {
        "source": "base_mask", "lost_tags": lost, "rejected": rejected, "max_lost_tags": 0.1, "max_rejected": 0.6,
        "harmful": harmful,
    }  # fmt: skip


def test_nothing_is_lost_where_nothing_was_removed_or_nothing_was_there(store: ArtifactStore):
    write_masks(store, "mars_mask", BEFORE)
    assert measure(store) == (0, 0)
    empty = {name: np.zeros((2, 4)) for name in BEFORE}
    write_masks(store, "base_mask", empty)
    write_masks(store, "mars_mask", empty)
    assert measure(store) == (0, 0)


def test_without_background_class_0_counts_as_foreground(store: ArtifactStore):
    classes = ClassSet(("cat", "dog", "car", "bus"), has_background=False)
    records = [Record("a", Path("a.jpg"), (0, 1))]
    found = measure_removal(store, "mars_mask", records, source="base_mask", classes=classes)
    assert found == pytest.approx((0, 3 / 7))


def test_a_manifest_gives_the_gate_back(store: ArtifactStore):
    assert Gate.read(None) is None
    assert Gate.read(store.manifest("mars_mask", "train")) is None
    write_masks(store, "mars_mask", AFTER, gate=gate(0.2))
    assert Gate.read(store.manifest("mars_mask", "train")) == Gate("base_mask", 0.2, 0.5, 0.1, 0.6)


def test_harmful_masks_are_replaced_by_their_source_unless_forced(store: ArtifactStore):
    assert kind_to_read(store, "mars_mask") == "mars_mask"  # no gate
    write_masks(store, "mars_mask", AFTER, gate=gate(0.1))
    assert kind_to_read(store, "mars_mask") == "mars_mask"
    write_masks(store, "mars_mask", AFTER, gate=gate(0.2))
    assert kind_to_read(store, "mars_mask") == "base_mask"
    assert kind_to_read(store, "mars_mask", force=True) == "mars_mask"
    assert kind_to_read(store, "uss") == "uss"  # absent
    assert kind_to_read(store, "dhr_mask") == "dhr_mask"  # the datamodule adds the round


def test_a_source_that_is_harmful_itself_is_replaced_as_well(store: ArtifactStore):
    write_masks(store, "wss_mask", AFTER, gate=gate(0.9))
    write_masks(store, "mars_mask", AFTER, gate=gate(0.9, source="wss_mask"))
    assert kind_to_read(store, "mars_mask") == "base_mask"


CONFIG = {"model": {"class_path": "DHRTask", "init_args": {"init_from": None, "rebalance": {"uss": False}}}}
FORCED = {"model": {**CONFIG["model"], "init_args": {**CONFIG["model"]["init_args"], "force_masks": True}}}


@pytest.mark.parametrize(
    ("lost", "config", "read"),
    [(0.2, CONFIG, "base_mask"), (0.2, FORCED, "mars_mask"), (0.0, CONFIG, "mars_mask"), (0.0, FORCED, "mars_mask")],
)
def test_planning_and_datamodule_read_the_same_masks(
    tmp_path: Path, train_records: list[Record], lost: float, config: dict[str, Any], read: str
):
    store = ArtifactStore(tmp_path / "artifacts", "voc")
    write_masks(store, "base_mask", BEFORE)
    write_masks(store, "mars_mask", AFTER, gate=gate(lost))
    needs = Needs(train_masks="mars_mask", predict_masks="mars_mask", force_masks=config is FORCED)
    datamodule = WSSSDataModule(dataset="voc", workspace=str(tmp_path), num_workers=0)
    datamodule.trainer = SimpleNamespace(lightning_module=SimpleNamespace(needs=needs), world_size=1, global_rank=0)
    datamodule._records["train"] = train_records

    assert identity.used_kinds(config, store) == {"mars_mask": read}
    described = identity.describe_artifact(config, "prediction", "train", records={"train": train_records}, store=store)
    assert set(described.inputs) == {"data/train", f"{read}/train"}
    for loader in (datamodule.train_dataloader(), *datamodule.predict_dataloader()):
        assert loader.dataset.masks("a") == store.path(read, "train", "a")
    assert datamodule.refresh_dataloader(train_records).dataset.masks("a") == store.path(read, "train", "a")


def test_a_step_needs_the_masks_that_it_names_and_those_that_it_reads(store: ArtifactStore):
    write_masks(store, "mars_mask", AFTER, gate=gate(0.2))
    check_inputs(CONFIG, store, step="dhr", dataset="")
    store.path("base_mask", "train", "b").unlink()
    with pytest.raises(ArtifactError, match=r"dhr needs base_mask/train, which is partial \(1 of 3 files"):
        check_inputs(CONFIG, store, step="dhr", dataset="")
    write_masks(store, "base_mask", BEFORE)
    store.path("mars_mask", "train", "b").unlink()
    with pytest.raises(ArtifactError, match=r"dhr needs mars_mask/train, which is partial \(1 of 3 files"):
        check_inputs(CONFIG, store, step="dhr", dataset="")


def test_notes_tell_what_was_removed_and_whether_it_is_used(store: ArtifactStore):
    assert gate_notes(store) == []
    write_masks(store, "mars_mask", AFTER, gate=gate(0.05))
    assert gate_notes(store) == [
        "mars_mask/train removes the last pixel of 5.0 % of the tags that base_mask has (limit 10 %) and 50.0 % of its "
        "foreground pixels (limit 60 %)."
    ]
    write_masks(store, "mars_mask", AFTER, gate=gate(0.995))
    (note,) = gate_notes(store)
    assert note.startswith("mars_mask/train is harmful: it removes the last pixel of 99.5 % of the tags")
    assert note.endswith("It is not used; later steps read base_mask.")

    identity = Manifest.create("wss_mask", "voc", "train", ids=["a"], settings={}, inputs={"mars_mask/train": "0"})
    with store.open_writer("wss_mask", "train", identity=identity, ids=["a"], palette=CLASSES.palette) as writer:
        writer.write("a", np.zeros((2, 4), np.uint8))
        writer.seal()
    (note,) = gate_notes(store)
    assert note.endswith("It is used all the same (model.init_args.force_masks: true).")
