"""Which fit of a folder of fits has finished, and where its weights are."""

import pytest

from dhr_lightning.artifacts.manifest import digest_file
from dhr_lightning.artifacts.runs import (
    LAST,
    PREVIOUS,
    find_checkpoint,
    finished_checkpoint,
    next_version,
    read_state,
    write_state,
)
from dhr_lightning.errors import ArtifactError


def put(folder, run, *names):
    for name in names:
        path = folder / run / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_the_previous_checkpoint_counts_only_where_the_last_is_missing(tmp_path):
    assert find_checkpoint(tmp_path / "version_0") is None
    put(tmp_path, "version_0", PREVIOUS, "epoch=3.ckpt")
    assert find_checkpoint(tmp_path / "version_0").name == PREVIOUS
    put(tmp_path, "version_0", LAST)
    assert find_checkpoint(tmp_path / "version_0").name == LAST


def test_a_folder_where_nothing_ran_has_no_state_and_no_weights(tmp_path):
    assert read_state(tmp_path) == {}
    assert finished_checkpoint(tmp_path) is None
    assert finished_checkpoint(tmp_path / "nowhere") is None


def test_weights_of_others_are_those_of_the_newest_run_and_only_after_its_fit(tmp_path):
    put(tmp_path, "version_0", LAST)
    put(tmp_path, "version_1", LAST)
    write_state(tmp_path, {"run": "version_0", "fitted": False})
    assert finished_checkpoint(tmp_path) is None
    write_state(tmp_path, {"run": "version_0", "fitted": True, "seconds": 1.5})
    assert read_state(tmp_path) == {"run": "version_0", "fitted": True, "seconds": 1.5}
    assert finished_checkpoint(tmp_path) == tmp_path / "version_0" / "checkpoints" / LAST
    write_state(tmp_path, {"run": "version_1", "fitted": True})
    assert finished_checkpoint(tmp_path) == tmp_path / "version_1" / "checkpoints" / LAST
    write_state(tmp_path, {"run": "version_2", "fitted": True})  # its checkpoints were deleted
    assert finished_checkpoint(tmp_path) is None


def test_a_state_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"state\.json"):
        finished_checkpoint(tmp_path)


def test_the_next_version_is_above_all_that_were(tmp_path):
    assert next_version(tmp_path) == next_version(tmp_path / "nowhere") == "version_0"
    for name in ("version_0", "version_9", "version_10", "version_x", "version_", "other_30"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == "version_11"


def test_weights_that_are_gone_or_changed_are_not_replaced_by_those_before(tmp_path):
    put(tmp_path, "version_0", PREVIOUS, LAST)
    last = tmp_path / "version_0" / "checkpoints" / LAST
    write_state(tmp_path, {"run": "version_0", "fitted": True, "weights": digest_file(last)})
    assert finished_checkpoint(tmp_path) == last
    last.write_bytes(b"others")
    assert finished_checkpoint(tmp_path) is None
    last.unlink()
    assert finished_checkpoint(tmp_path) is None
