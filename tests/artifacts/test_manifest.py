import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from dhr_lightning.artifacts import manifest as module
from dhr_lightning.artifacts.manifest import Manifest, digest_config, digest_file, digest_ids
from dhr_lightning.errors import ArtifactError


@dataclasses.dataclass(frozen=True)
class Refinement:
    steps: int = 10
    folder: Path = Path("a/b")


def test_order_and_spelling_of_settings_do_not_matter():
    first = digest_config({"a": 1, "b": {"c": (1, 2), "d": 0.5}, "e": Refinement()})
    second = digest_config({"e": {"folder": "a/b", "steps": 10.0}, "b": {"d": 0.5, "c": [1.0, 2]}, "a": 1.0})
    assert first == second


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"b": 1}, {}, {"a": 1, "b": 1}]
)
def test_every_other_setting_changes_the_digest(other):
    assert digest_config(other) != digest_config({"a": 1})


def test_settings_without_json_form_are_named():
    with pytest.raises(TypeError, match=r"`settings\.a\.1`, but got set"):
        digest_config({"a": [0, {1, 2}]})
    with pytest.raises(ValueError, match=r"finite value for `settings\.b\.tau`, but got nan"):
        digest_config({"b": {"tau": float("nan")}})


def test_ids_are_a_set():
    assert digest_ids(["b", "a"]) == digest_ids(("a", "b"))
    assert digest_ids(["a", "b"]) != digest_ids(["a,b"])
    assert digest_ids(["a", "b"]) != digest_ids(["ab"])
    with pytest.raises(ValueError, match="'a' twice"):
        digest_ids(["a", "b", "a"])


def test_file_digest_is_sha256_and_follows_the_content(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"x" * (3 << 20))
    assert digest_file(path) == hashlib.sha256(b"x" * (3 << 20)).hexdigest()
    path.write_bytes(b"y" * (3 << 20))
    os.utime(path, ns=(0, 123))
    assert digest_file(path) == hashlib.sha256(b"y" * (3 << 20)).hexdigest()
    with pytest.raises(ArtifactError, match="existing checkpoint"):
        digest_file(tmp_path / "none.ckpt")


def test_unchanged_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"x")
    first = digest_file(path)
    monkeypatch.setattr(Path, "open", None)
    assert digest_file(path) == first


def test_digest_ignores_info_and_the_place_of_the_checkpoint(describe, tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).write_bytes(b"weights")
    first = describe(checkpoint=tmp_path / "a.ckpt").with_info(note="first")
    second = describe(checkpoint=tmp_path / "b.ckpt").with_info(seconds=3)
    assert first.checkpoint != second.checkpoint
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "field", ["address", "dataset", "split", "count", "ids", "config", "inputs", "checkpoint", "schema"]
)
def test_digest_depends_on_every_identity_field(describe, field):
    other = {"count": 99, "schema": 3, "inputs": {"cam": "0" * 64}, "checkpoint": {"path": "a", "sha256": "0" * 64}}
    base = describe()
    assert dataclasses.replace(base, **{field: other.get(field, "other")}).digest != base.digest


def test_save_and_load_keep_everything(describe, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    made = describe(inputs={"cam": "1" * 64}, checkpoint=tmp_path / "a.ckpt")
    made = made.with_info(note="é").with_info(seconds=1.5)
    assert made.info == {"note": "é", "seconds": 1.5}
    made.save(tmp_path / "manifest.json")
    back = Manifest.load(tmp_path / "manifest.json")
    assert back == made
    assert back.digest == made.digest
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["dhr"]["tau"] == 0.8


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", 1, "schema 1, but this version reads schema 2"),
        ("ids", None, "not a manifest"),
        ("inputs", ["cam"], "not a manifest"),
        ("settings", "tau", "not a manifest"),
        ("checkpoint", {"path": "a"}, "not a manifest"),
        ("count", "three", "not a manifest"),
    ],
)
def test_damaged_manifest_is_an_error_with_its_path(describe, tmp_path, field, value, message):
    path = tmp_path / "manifest.json"
    describe().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=message) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)


def test_manifest_without_a_field_is_an_error(describe, tmp_path):
    path = tmp_path / "manifest.json"
    describe().save(path)
    content = json.loads(path.read_text())
    del content["config"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="config"):
        Manifest.load(path)


def test_changes_show_old_and_new_values(describe):
    inputs = {"cam": "a" * 64, "uss": "b" * 64}
    old = describe(settings={"dhr": {"tau": 0.8, "seed": True}, "crf": None}, inputs=inputs)
    new = describe(
        settings={"dhr": {"tau": 0.7, "seed": True}, "size": [1, 2]}, inputs={"cam": "c" * 64, "mask": "d" * 64}
    )
    assert old.changes_to(new) == [
        "crf null -> absent",
        "dhr.tau 0.8 -> 0.7",
        "size absent -> [1, 2]",
        f"input cam {'a' * 12} -> {'c' * 12}",
        f"input mask none -> {'d' * 12}",
        f"input uss {'b' * 12} -> none",
    ]


def test_nothing_changed_is_an_empty_list(describe):
    assert describe(tau=1).changes_to(describe(tau=1.0)) == []


def test_change_of_ids_shows_the_counts(describe):
    assert describe().changes_to(describe(ids=("a", "b")))[0].startswith("image ids 3 -> 2 images")
    same_count = describe().changes_to(describe(ids=("a", "b", "c")))
    assert len(same_count) == 1
    assert same_count[0].startswith("image ids 3 -> 3 images")


def test_checkpoint_is_compared_only_when_today_has_one(describe, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"old")
    (tmp_path / "b.ckpt").write_bytes(b"new")
    old, new, none = describe(checkpoint=tmp_path / "a.ckpt"), describe(checkpoint=tmp_path / "b.ckpt"), describe()
    assert old.changes_to(new) == [
        f"checkpoint {hashlib.sha256(b'old').hexdigest()[:12]} -> {hashlib.sha256(b'new').hexdigest()[:12]}"
    ]
    assert none.changes_to(new)[0].startswith("checkpoint none -> ")
    assert old.changes_to(none) == []


def test_timestamp_has_an_offset():
    assert module.timestamp()[-5] in "+-"
