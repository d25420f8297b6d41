"""Word by word, why an artifact is not fresh; and what locks, writers and forgetting leave on disk."""

import dataclasses
import hashlib

import numpy as np
import pytest

import dhr_lightning
from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.store import Status
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.errors import ArtifactError, LockError

KIND = ("mask", "train")
MASK = np.ones((3, 4), np.uint8)


def short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]


def test_every_difference_is_said_with_both_values(describe):
    old = describe(settings={"größe": "ä", "crf": {}})
    new = dataclasses.replace(old, schema=3, address="label", dataset="voc", split="val", ids="b" * 64, count=9)
    assert old.changes_to(new) == [
        "schema 2 -> 3", "address mask -> label", "dataset tiny -> voc", "split train -> val",
        f"image ids 3 -> 9 images ({old.ids[:12]} -> {'b' * 12})",
    ]  # fmt: skip
    assert old.changes_to(describe(settings={"größe": "ö"})) == ["crf {} -> absent", 'größe "ä" -> "ö"']


def test_settings_that_differ_in_their_digest_alone_are_still_said(describe):
    old = describe()
    new = dataclasses.replace(old, config="c" * 64)
    assert old.changes_to(new) == [f"settings digest {old.config[:12]} -> {'c' * 12}"]


def test_differences_of_settings_come_after_others_and_do_not_replace_them(describe):
    reasons = describe(tau=0.8).changes_to(describe("label", tau=0.5))
    assert reasons == ["address mask -> label", "dhr.tau 0.8 -> 0.5"]


def test_a_checkpoint_trained_further_is_named_with_both_digests(store, describe, fill, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    fill(describe(checkpoint=path))
    path.write_bytes(b"trained further")
    expected = Status("stale", f"checkpoint {path} {short(b'old')} -> {short(b'trained further')}")
    assert store.status(*KIND) == store.status(*KIND, expected=describe()) == expected


def test_a_setting_and_a_checkpoint_that_changed_are_both_said(store, describe, fill, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    fill(describe(checkpoint=path, tau=0.8))
    path.write_bytes(b"new")
    reason = store.status(*KIND, expected=describe(tau=0.5)).reason
    assert reason == f"dhr.tau 0.8 -> 0.5; checkpoint {path} {short(b'old')} -> {short(b'new')}"


@pytest.mark.parametrize(("count", "end"), [(6, "s5 0 -> 1"), (7, "s5 0 -> 1; and 1 more")])
def test_six_reasons_are_shown_whole(store, describe, fill, count, end):
    fill(describe(settings={f"s{number}": 0 for number in range(count)}))
    status = store.status(*KIND, expected=describe(settings={f"s{number}": 1 for number in range(count)}))
    assert status.reason == "; ".join([*(f"s{number} 0 -> 1" for number in range(5)), end])


def test_states_before_sealing_say_what_lies_there(store, describe, ids, palette):
    folder = store.folder(*KIND)
    assert store.status(*KIND) == Status("absent", f"nothing in {folder}")
    with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette) as writer:
        writer.write(ids[0], MASK)
    reason = f"1 of 3 files were written to {folder} before an interruption"
    assert store.status(*KIND) == store.status(*KIND, expected=describe()) == Status("partial", reason)
    changed = store.status(*KIND, expected=describe(tau=0.5))
    assert changed == Status("partial", f"{reason}, with other settings: dhr.tau 0.8 -> 0.5")
    (folder / ".partial.json").write_text("{")
    assert store.status(*KIND).state == "partial"
    assert ".partial.json cannot be read" in store.status(*KIND).reason
    (folder / ".partial.json").unlink()
    assert store.status(*KIND) == Status("partial", f"1 .png files in {folder} have no manifest")


def test_a_changed_list_of_ids_is_named(store, describe, fill):
    fill(describe())
    path = store.folder(*KIND) / "ids.txt"
    path.write_text("other\n")
    assert store.status(*KIND) == Status("partial", f"{path} is absent or was changed; make the artifact again")


def test_ids_in_any_script_are_recorded_and_found_again(store, describe, fill, monkeypatch):
    ids = ("名前", "größe/ü", "a/b/c")
    fill(describe(ids=ids), ids=ids)
    assert store.status(*KIND).fresh
    assert (store.folder(*KIND) / "ids.txt").read_bytes() == "名前\ngröße/ü\na/b/c\n".encode()


def test_a_forgotten_artifact_is_made_anew_whatever_it_was_made_from(store, describe, fill, ids, palette):
    store.forget(*KIND)
    fill(describe())
    store.forget(*KIND)
    assert store.status(*KIND, expected=describe()).state == "partial"
    assert store.path(*KIND, ids[0]).exists()
    with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette) as writer:
        assert writer.missing() == list(ids)
    store.forget(*KIND)
    assert not (store.folder(*KIND) / ".partial.json").exists()


def test_seconds_are_recorded_to_the_millisecond_and_only_if_given(store, describe, ids, palette):
    for seconds, expected in ((None, None), (1.23456, 1.235)):
        with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette) as writer:
            for one in writer.missing():
                writer.write(one, MASK)
            assert writer.seal(seconds=seconds).info.get("seconds") == expected
        assert ("seconds" in store.manifest(*KIND).info) == (seconds is not None)


def test_a_version_that_is_not_installed_is_recorded_as_unknown(store, describe, fill, monkeypatch):
    monkeypatch.setattr(dhr_lightning, "DISTRIBUTION", "no-such-distribution-of-dhr")
    assert fill(describe()).info["version"] == "unknown"


def test_seal_says_how_many_files_are_missing(store, describe, ids, palette):
    message = rf"3 of 3 files are missing in .*mask/train, first '{ids[0]}'"
    writer = store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette)
    with writer, pytest.raises(ArtifactError, match=message):
        writer.seal()
    with pytest.raises(ValueError, match=r"`seal` on the open writer"):
        writer.seal()


def test_the_list_of_ids_is_on_the_disk_before_the_first_file(describe, store, ids, palette, disk_events):
    with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette):
        assert disk_events == [
            "sync file", "replace ids.txt", "sync folder", "sync file", "replace .partial.json", "sync folder",
        ]  # fmt: skip


def test_a_cam_takes_two_arrays_and_features_one(describe, store, ids):
    keys, cam = np.zeros(1, np.int16), np.zeros((1, 2, 2), np.float16)
    for kind, wrong, count in (("cam", (cam,), 2), ("cam", (keys, cam, cam), 2), ("features", (keys, cam), 1)):
        with (
            store.open_writer(kind, "train", identity=describe(kind), ids=ids) as writer,
            pytest.raises(ValueError, match=rf"Expected {count} array\(s\) for {kind}, but got {len(wrong)}"),
        ):
            writer.write(ids[0], *wrong)


def test_sealing_needs_no_trace_of_the_run(store, describe, ids, palette):
    with store.open_writer(*KIND, identity=describe(), ids=ids, palette=palette) as writer:
        for one in ids:
            writer.write(one, MASK)
        (store.folder(*KIND) / ".partial.json").unlink()
        writer.seal()
    assert store.status(*KIND, expected=describe()).fresh


def test_a_writer_made_by_hand_owns_its_folder(describe, tmp_path, ids, palette):
    with ArtifactWriter(tmp_path, identity=describe(), ids=ids, palette=palette) as writer:
        for one in ids:
            writer.write(one, MASK)
        with pytest.raises(LockError):
            FolderLock(tmp_path / ".lock").__enter__()
        assert writer.seal().count == 3


def test_files_that_somebody_removes_while_they_are_cleared_are_no_failure(store, describe, fill, monkeypatch):
    fill(describe(tau=0.8))
    folder, below = store.folder(*KIND), layout.files_below
    monkeypatch.setattr(layout, "files_below", lambda _: [*below(folder), folder / "gone.png", folder / ".tmp-1-gone"])
    fill(describe(tau=0.7))
    monkeypatch.undo()
    assert store.status(*KIND, expected=describe(tau=0.7)).fresh
