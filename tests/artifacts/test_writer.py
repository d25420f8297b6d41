import os
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from dhr_lightning.artifacts import arrays, files
from dhr_lightning.artifacts import writer as writer_module
from dhr_lightning.artifacts.checksums import read_checksums
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import ArtifactError, LockError

KIND = ("mask", "train")
MASK = np.ones((3, 4), np.uint8)


@pytest.fixture
def opened(store: ArtifactStore, ids, palette):
    def make(identity, **settings):
        arguments = {"ids": ids, "palette": palette, **settings}
        return store.open_writer(identity.address, "train", identity=identity, **arguments)

    return make


def names(store: ArtifactStore) -> set[str]:
    folder = store.folder(*KIND)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_each_kind_writes_its_own_format(store, describe, opened):
    cam = np.zeros((2, 3, 4), np.float16)
    with opened(describe("cam"), palette=None) as writer:
        path = writer.write("cats/0001", np.array([1, 2], np.int16), cam)
        assert path == store.path("cam", "train", "cats/0001")
        assert files.read_cam(path)[1].shape == (2, 3, 4)
    with opened(describe("features"), palette=None) as writer:
        assert arrays.read_features(writer.write("cats/0001", cam)).shape == (2, 3, 4)
    with opened(describe("mask/round_01")) as writer:
        np.testing.assert_array_equal(files.read_mask(writer.write("cats/0001", MASK)), MASK)


def test_same_identity_resumes_and_keeps_the_files(store, describe, opened, ids):
    with opened(describe()) as writer:
        assert writer.missing() == list(ids)
        writer.write(ids[1], MASK)
        assert writer.done(ids[1])
    before = store.path(*KIND, ids[1]).stat()
    with opened(describe()) as writer:
        assert [writer.done(one) for one in ids] == [False, True, False]
        assert writer.missing() == [ids[0], ids[2]]
        for one in writer.missing():
            writer.write(one, MASK)
        writer.seal()
    assert store.path(*KIND, ids[1]).stat() == before
    assert store.status(*KIND, expected=describe()).fresh
    assert names(store) == {f"{one}.png" for one in ids} | {"manifest.json", "ids.txt", "checksums.txt", ".lock"}


def test_empty_file_left_by_a_power_cut_is_not_done(store, describe, opened, ids):
    with opened(describe()) as writer:
        writer.write(ids[0], MASK)
    store.path(*KIND, ids[0]).write_bytes(b"")
    with opened(describe()) as writer:
        assert not writer.done(ids[0])


def test_all_files_are_on_the_disk_before_the_manifest_is_written(store, describe, opened, ids, monkeypatch):
    seen = []
    monkeypatch.setattr("os.sync", lambda: seen.append(names(store)))
    with opened(describe()) as writer:
        for one in ids:
            writer.write(one, MASK)
        assert not seen
        writer.seal()
    (then,) = seen
    assert {f"{one}.png" for one in ids} <= then
    assert "manifest.json" not in then


@pytest.mark.parametrize("sealed", [True, False])
def test_other_identity_starts_from_nothing(store, describe, opened, fill, ids, sealed):
    if sealed:
        fill(describe(tau=0.8))
    else:
        with opened(describe(tau=0.8)) as writer:
            writer.write(ids[0], MASK)
    with opened(describe(tau=0.7)) as writer:
        assert writer.missing() == list(ids)
        assert names(store) == {".lock", ".partial.json", "ids.txt"}
    assert store.status(*KIND, expected=describe(tau=0.8)).state == "partial"


def test_other_ids_start_from_nothing_and_leave_no_orphans(store, describe, fill):
    fill(describe())
    fill(describe(ids=("2007_000032", "b")), ids=("2007_000032", "b"))
    assert {name for name in names(store) if name.endswith(".png")} == {"2007_000032.png", "b.png"}
    assert store.status(*KIND).fresh


def test_opening_a_sealed_artifact_again_unseals_it_but_keeps_its_files(store, describe, opened, fill):
    fill(describe())
    with opened(describe()) as writer:
        assert store.manifest(*KIND) is None
        assert writer.missing() == []
        writer.seal()
    assert store.status(*KIND, expected=describe()).fresh


def test_deleted_manifest_forces_a_new_start(store, describe, opened, fill, ids):
    fill(describe())
    (store.folder(*KIND) / "manifest.json").unlink()
    with opened(describe()) as writer:
        assert writer.missing() == list(ids)


def test_files_of_unknown_origin_are_never_deleted(store, describe, opened):
    folder = store.folder(*KIND)
    folder.mkdir(parents=True)
    (folder / "mine.png").write_bytes(b"hand made")
    with pytest.raises(ArtifactError, match=r"1 \.png files without a manifest, first mine\.png"), opened(describe()):
        pass
    assert (folder / "mine.png").read_bytes() == b"hand made"
    (folder / "mine.png").unlink()
    with opened(describe()):
        pass


def test_only_items_are_cleared(store, describe, opened, fill):
    fill(describe(tau=0.8))
    notes = store.folder(*KIND) / "notes.txt"
    notes.write_text("mine")
    with opened(describe(tau=0.7)):
        assert notes.read_text() == "mine"


def test_temporary_files_are_swept_everywhere(store, describe, opened, fill):
    fill(describe())
    folder = store.folder(*KIND)
    for path in (folder / ".tmp-1-aa", folder / "cats" / ".tmp-2-bb"):
        path.touch()
    with opened(describe()):
        assert not any(".tmp-" in name for name in names(store))


def test_seal_names_the_count_and_the_first_missing_file(store, describe, opened, ids):
    with opened(describe()) as writer:
        writer.write(ids[0], MASK)
        with pytest.raises(ArtifactError, match=rf"2 of 3 files are missing in .*, first '{ids[1]}'"):
            writer.seal()
    assert store.manifest(*KIND) is None


def test_failure_inside_the_block_releases_the_lock_and_stays_resumable(store, describe, opened, ids):
    with pytest.raises(ValueError, match="uint8"), opened(describe()) as writer:
        list(map(writer.write, ids[:2], (MASK, MASK.astype(np.int64))))
    with opened(describe()) as writer:
        assert writer.done(ids[0])


def test_wrong_use_is_refused(store, describe, opened, ids, palette):
    with opened(describe()) as writer:
        with pytest.raises(ValueError, match="one of the 3 `ids`"):
            writer.write("unknown", MASK)
        with pytest.raises(ValueError, match=r"1 array\(s\) for mask, but got 2"):
            writer.write(ids[0], MASK, MASK)
    for call in (lambda: writer.write(ids[0], MASK), writer.seal):
        with pytest.raises(ValueError, match="open"):
            call()
    with pytest.raises(ValueError, match="`palette` to write mask"):
        opened(describe(), palette=None)
    with pytest.raises(ValueError, match="3 ids of `identity`, but got 1 other"):
        opened(describe(), ids=ids[:1])
    with pytest.raises(ValueError, match="mask/tiny/val, but got mask/tiny/train"):
        store.open_writer("mask", "val", identity=describe(), ids=ids, palette=palette)
    with pytest.raises(ArtifactError, match="image id"):
        opened(describe(ids=("../a",)), ids=("../a",))


def test_second_writer_in_the_same_process_is_refused(describe, opened):
    with opened(describe()), pytest.raises(LockError, match=f"process {os.getpid()} on host"), opened(describe()):
        pass


def test_refused_writer_changes_nothing(store, describe, opened, ids):
    with opened(describe(tau=0.8)) as writer:
        writer.write(ids[0], MASK)
        before = names(store)
        with pytest.raises(LockError), opened(describe(tau=0.7)):
            pass
        assert names(store) == before


def test_other_ranks_write_but_do_not_lock_clear_or_seal(store, describe, opened, ids):
    with pytest.raises(ArtifactError, match="owner's writer first"), opened(describe(), owner=False):
        pass
    with opened(describe()) as owner:
        with opened(describe(), owner=False) as other:
            other.write(ids[1], MASK)
            assert owner.done(ids[1])
            with pytest.raises(ValueError, match="first rank"):
                other.seal()
        with pytest.raises(ArtifactError, match="not open"), opened(describe(tau=0.5), owner=False):
            pass
        owner.write(ids[0], MASK)
        owner.write(ids[2], MASK)
        owner.seal()
    assert store.status(*KIND, expected=describe()).fresh


def test_only_the_lists_and_the_manifest_are_synced_not_every_item(describe, opened, ids, disk_events):
    with opened(describe()) as writer:
        disk_events.clear()
        for one in ids:
            writer.write(one, MASK)
        assert disk_events == [f"replace {one.split('/')[-1]}.png" for one in ids]
        disk_events.clear()
        writer.seal()
    assert disk_events == [
        *("sync file", "replace checksums.txt", "sync folder"),
        *("sync file", "replace manifest.json", "sync folder"),
    ]


def test_version_and_note_are_recorded(store, describe, opened, ids):
    with opened(describe()) as writer:
        for one in ids:
            writer.write(one, MASK)
        writer.seal(seconds=2, note="by hand")
    info = store.manifest(*KIND).info
    assert info["note"] == "by hand"
    assert info["seconds"] == 2
    assert info["version"]
    assert info["created"][:2] == "20"


def test_a_disk_that_will_be_too_small_is_told_after_eight_files(tmp_path, palette, describe, monkeypatch):
    store, ids = ArtifactStore(tmp_path / "artifacts", "tiny"), tuple(f"{k:03d}" for k in range(40))
    identity = describe(ids=ids)
    free = [10**9]
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with store.open_writer("mask", "train", identity=identity, ids=ids, palette=palette) as writer:
        for one in ids[:7]:
            size = writer.write(one, MASK).stat().st_size
        free[0] = 32 * size - 1
        with pytest.raises(ArtifactError, match=r"more for 32 images, but .* are free\. Free 1 B and run"):
            writer.write(ids[7], MASK)
        free[0] = 24 * size
        for one in ids[8:16]:
            writer.write(one, MASK)
        assert len(writer.missing()) == 24


def test_checksums_are_of_what_was_written_and_survive_an_interruption(store, describe, opened, ids):
    with opened(describe()) as writer:
        for one in ids:
            writer.write(one, MASK)
        writer.seal()
    folder = store.folder(*KIND)
    first = read_checksums(folder)
    assert first == {one: f"{zlib.crc32(store.path(*KIND, one).read_bytes()):08x}" for one in ids}
    store.path(*KIND, ids[0]).write_bytes(b"painted on")  # nobody may call this the file that was written
    store.path(*KIND, ids[1]).unlink()
    with opened(describe()) as writer:
        writer.write(ids[1], MASK)
        writer.seal()
    assert read_checksums(folder) == first
    with opened(describe(tau=0.5)) as writer:
        assert read_checksums(folder) == {}
