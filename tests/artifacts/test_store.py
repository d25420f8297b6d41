import json
import os
import shutil

import numpy as np
import pytest

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.kinds import round_address
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.errors import ArtifactError

KIND = ("mask", "train")


def test_nothing_is_absent_and_looking_creates_nothing(store, describe):
    status = store.status(*KIND, expected=describe())
    assert status.state == "absent"
    assert not status.fresh
    assert store.manifest(*KIND) is None
    assert store.addresses() == []
    assert not store.root.exists()


def test_sealed_artifact_is_fresh(store, describe, fill, ids):
    fill(describe())
    for expected in (describe(), None):
        for wanted in (ids, tuple(reversed(ids)), None):
            assert store.status(*KIND, expected=expected, ids=wanted) == Status("fresh")
    assert str(store.status(*KIND)) == "fresh"
    assert store.manifest(*KIND).info["seconds"] == 1.5


@pytest.mark.parametrize("image_id", ["2007_000039", "cats/0001"])
@pytest.mark.parametrize("damage", ["gone", "folder"])
def test_one_file_missing_is_partial_and_named(store, describe, fill, ids, image_id, damage):
    fill(describe())
    path = store.path(*KIND, image_id)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    for wanted in (ids, None):
        status = store.status(*KIND, expected=describe(), ids=wanted)
        assert status.state == "partial"
        assert f"1 of 3 files are missing in {store.folder(*KIND)}, first '{image_id}'" in status.reason


def test_a_file_emptied_by_hand_is_named_when_it_is_read(store, describe, fill, ids):
    """A power cut cannot do that: files are on the disk before the manifest is."""
    fill(describe())
    path = store.path(*KIND, ids[0])
    path.write_bytes(b"")
    with pytest.raises(
        ArtifactError, match=rf"{path} cannot be read .*Delete the file and run `python -m dhr_lightning run`"
    ):
        read_mask(path)
    path.unlink()
    assert store.status(*KIND, expected=describe()).state == "partial"


def test_stale_setting_is_shown_with_both_values(store, describe, fill):
    fill(describe(tau=0.8))
    status = store.status(*KIND, expected=describe(tau=0.7))
    assert status == Status("stale", "dhr.tau 0.8 -> 0.7")
    assert str(status) == "stale (dhr.tau 0.8 -> 0.7)"


def test_stale_input_is_named(store, describe, fill):
    fill(describe(inputs={"cam": "a" * 64}))
    status = store.status(*KIND, expected=describe(inputs={"cam": "b" * 64}))
    assert status == Status("stale", f"input cam {'a' * 12} -> {'b' * 12}")


def test_remade_input_makes_its_consumer_stale(store, describe, fill):
    first = fill(describe("label", tau=0.8))
    fill(describe(inputs={"label": first.digest}))
    second = fill(describe("label", tau=0.7))
    status = store.status(*KIND, expected=describe(inputs={"label": second.digest}))
    assert status.state == "stale"
    assert status.reason.startswith("input label")


def test_other_ids_are_stale_with_and_without_expected(store, describe, fill):
    fill(describe())
    more = ("2007_000032", "2007_000039", "cats/0001", "new")
    assert "image ids 3 -> 4 images" in store.status(*KIND, expected=describe(ids=more)).reason
    assert store.status(*KIND, ids=more) == Status("stale", "image ids 3 -> 4 images")


def test_many_reasons_are_shortened(store, describe, fill):
    fill(describe(settings={f"s{number}": 0 for number in range(9)}))
    status = store.status(*KIND, expected=describe(settings={f"s{number}": 1 for number in range(9)}))
    assert status.reason.startswith("s0 0 -> 1; s1 0 -> 1; ")
    assert status.reason.endswith("; and 3 more")


def test_recorded_checkpoint_that_changed_is_stale(store, describe, fill, tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"old")
    fill(describe(checkpoint=checkpoint))
    assert store.status(*KIND, expected=describe(checkpoint=checkpoint)).fresh
    assert store.status(*KIND, expected=describe()).fresh
    checkpoint.write_bytes(b"trained further")
    for expected in (None, describe(), describe(checkpoint=checkpoint)):
        status = store.status(*KIND, expected=expected)
        assert status.state == "stale"
        assert status.reason.startswith("checkpoint")
        assert "cba06b5736fa -> " in status.reason
    checkpoint.unlink()
    assert store.status(*KIND, expected=describe()).fresh


def test_moved_checkpoint_is_still_fresh(store, describe, fill, tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"old")
    fill(describe(checkpoint=checkpoint))
    shutil.move(checkpoint, tmp_path / "best.ckpt")
    assert store.status(*KIND, expected=describe(checkpoint=tmp_path / "best.ckpt")).fresh
    checkpoint.write_bytes(b"a later epoch took the old name")
    assert store.status(*KIND, expected=describe(checkpoint=tmp_path / "best.ckpt")).fresh


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_unreadable_manifest_is_stale_not_a_crash(store, describe, fill, text):
    fill(describe())
    (store.folder(*KIND) / "manifest.json").write_text(text)
    assert store.status(*KIND, expected=describe()).state == "stale"
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        store.manifest(*KIND)
    fill(describe(), value=2)
    assert store.status(*KIND, expected=describe()).fresh


@pytest.mark.parametrize("text", [None, "", "2007_000032\n", "2007_000032\n2007_000032\n", "../a\nb\nc\n"])
def test_changed_list_of_ids_is_not_trusted(store, describe, fill, ids, text):
    fill(describe())
    path = store.folder(*KIND) / "ids.txt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert store.status(*KIND).state == "partial"
    assert store.status(*KIND, ids=ids).fresh


def test_files_alone_are_not_complete(store, describe, fill):
    fill(describe())
    (store.folder(*KIND) / "manifest.json").unlink()
    status = store.status(*KIND, expected=describe())
    assert status.state == "partial"
    assert "3 .png files" in status.reason
    assert "no manifest" in status.reason


def test_interrupted_artifact_says_how_far_it_came(store, describe, ids, palette):
    with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette) as writer:
        writer.write(ids[0], np.zeros((2, 2), np.uint8))
    status = store.status(*KIND, expected=describe())
    assert status.state == "partial"
    assert status.reason.startswith("1 of 3 files")
    assert "other settings" not in status.reason
    assert "dhr.tau 0.8 -> 0.5" in store.status(*KIND, expected=describe(tau=0.5)).reason


def test_addresses_and_rounds_list_what_is_on_disk(store, describe, fill, ids, palette):
    masks, others = "dhr/1a2b3c4d5e/mask", "dhr/5e4d3c2b1a/mask"
    for number in (11, 2, 100):
        fill(describe(round_address(masks, number)))
    fill(describe(round_address(others, 7)))
    fill(describe())
    begun = round_address(masks, 12)
    with store.open_writer(begun, "train", identity=describe(begun), ids=ids, palette=palette):
        pass
    for nothing in ("unknown/train", "dhr/1a2b3c4d5e/other/train", "dhr/1a2b3c4d5e/mask/round_3/train"):
        (store.root / "tiny" / nothing).mkdir(parents=True)
        (store.root / "tiny" / nothing / "manifest.json").touch()
    assert store.addresses() == [
        (f"{masks}/round_02", "train"), (f"{masks}/round_100", "train"), (f"{masks}/round_11", "train"),
        (f"{masks}/round_12", "train"), (f"{others}/round_07", "train"), ("mask", "train"),
    ]  # fmt: skip
    assert store.rounds(masks, "train") == [2, 11, 100]
    assert store.rounds(others, "train") == [7]
    assert store.rounds(masks, "val") == store.rounds("mask", "train") == []


def test_artifacts_under_other_keys_are_left_alone(store, describe, fill):
    fill(describe("crf/1a2b3c4d5e/mask"), value=1)
    first = store.folder("crf/1a2b3c4d5e/mask", "train")
    before = {path: path.read_bytes() for path in first.rglob("*.*")}
    fill(describe("crf/5e4d3c2b1a/mask", tau=0.5), value=2)
    assert {path: path.read_bytes() for path in first.rglob("*.*")} == before
    assert store.status("crf/1a2b3c4d5e/mask", "train", expected=describe("crf/1a2b3c4d5e/mask")).fresh


def test_split_and_dataset_are_kept_apart(store, describe, fill):
    fill(describe())
    assert store.status("mask", "val").state == "absent"
    assert ArtifactStore(store.root, "other").status(*KIND).state == "absent"


def test_manifest_copied_from_another_artifact_is_stale(store, describe, fill):
    fill(describe())
    fill(describe("label"))
    os.replace(store.folder("label", "train") / "manifest.json", store.folder(*KIND) / "manifest.json")
    assert store.status(*KIND, expected=describe()) == Status("stale", "address label -> mask")


def test_manifest_on_disk_is_plain_json_a_person_can_read(store, describe, fill):
    made = fill(describe())
    content = json.loads((store.folder(*KIND) / "manifest.json").read_text())
    assert content["settings"] == {"dhr": {"tau": 0.8, "epsilon": 0.1}}
    assert content["count"] == 3
    assert {"version", "created", "seconds"} <= set(content["info"])
    assert Manifest.load(store.folder(*KIND) / "manifest.json") == made
