"""Writers of jobs that share an artifact: side by side, never beside one that writes all of it."""

import numpy as np
import pytest

from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts import writer as writer_module
from dhr_lightning.artifacts.files import TEMPORARY_PREFIX
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import LockError
from dhr_lightning.shards import Shard

KIND = ("mask", "train")
MASK = np.ones((3, 4), np.uint8)
FIRST, SECOND = Shard(1, 2), Shard(2, 2)


@pytest.fixture
def opened(store: ArtifactStore, ids, palette):
    def make(identity, shard: Shard | None = None):
        return store.open_writer("mask", "train", identity=identity, ids=ids, palette=palette, shard=shard)

    return make


def test_jobs_write_side_by_side_and_leave_each_others_files_alone(store, describe, opened, ids):
    with opened(describe(), FIRST) as first:
        first.write(ids[0], MASK)
        beside = store.folder(*KIND) / f"{TEMPORARY_PREFIX}of_the_first"
        beside.write_bytes(b"half")
        with opened(describe(), SECOND) as second:
            assert beside.exists()
            assert second.done(ids[0])
            second.write(ids[1], MASK)
        first.write(ids[2], MASK)
        with pytest.raises(ValueError, match="Expected `seal` on the open writer of the first rank"):
            first.seal()
    assert set(layout.shards_begun(store.folder(*KIND))) == {FIRST, SECOND}
    assert store.manifest(*KIND) is None
    with opened(describe()) as whole:
        assert whole.missing() == []
        whole.seal()
    assert store.status(*KIND, expected=describe()).fresh


def test_the_same_job_cannot_write_twice_at_once(describe, opened):
    with opened(describe(), FIRST), pytest.raises(LockError), opened(describe(), FIRST):
        pass


def test_nobody_writes_all_of_it_beside_a_job(describe, opened, monkeypatch: pytest.MonkeyPatch):
    with opened(describe(), SECOND), pytest.raises(LockError), opened(describe()):
        pass
    monkeypatch.setattr(writer_module, "_PATIENCE", 0.05)
    with opened(describe()), pytest.raises(LockError), opened(describe(), SECOND):
        pass
    with opened(describe()):
        pass


def test_jobs_with_other_settings_wait_for_those_before(store, describe, opened, ids):
    other = describe(settings={"background": 0.5})
    with opened(describe(), FIRST) as first:
        first.write(ids[0], MASK)
        with pytest.raises(LockError), opened(other, SECOND):
            pass
        assert store.path(*KIND, ids[0]).exists()
    with opened(other, SECOND) as second:
        assert second.missing() == list(ids)  # files of other settings are gone
