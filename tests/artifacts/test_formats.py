"""What files and digests look like from outside, and how every damaged or wrong one is refused."""

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.artifacts import arrays, files, layout
from dhr_lightning.artifacts.manifest import digest_config, digest_file, digest_ids, flatten
from dhr_lightning.errors import ArtifactError

READERS = (files.read_mask, files.read_cam, arrays.read_features, arrays.features_shape, files.read_json)


def test_json_is_indented_text_with_letters_as_they_are_and_on_the_disk(tmp_path, disk_events):
    files.write_json(tmp_path / "a.json", {"größe": [1], "none": None})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "größe": [\n    1\n  ],\n  "none": null\n}\n'
    assert disk_events == ["sync file", "replace a.json", "sync folder"]


@pytest.mark.parametrize("read", READERS)
def test_a_folder_in_place_of_a_file_is_refused_with_its_path(tmp_path, read):
    with pytest.raises(ArtifactError, match=rf"{tmp_path} cannot be read \(.*`python -m dhr_lightning run`"):
        read(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_before_the_first_byte_is_said_to_be_full(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArtifactError, match=r"No space left to write .*a\.bin: 3 bytes needed, \d+ bytes free"):
        files.write_bytes(tmp_path / "a.bin", b"new")


WRONG = [
    ("keys", np.zeros(2, np.int32), np.zeros((2, 3, 3), np.float16), r"`keys` \(K,\) int16, but got \(2,\) int32"),
    ("keys", np.zeros((2, 1), np.int16), np.zeros((2, 3, 3), np.float16), r"`keys` \(K,\) int16, but got \(2, 1\)"),
    ("cam", np.zeros(2, np.int16), np.zeros((2, 3, 3)), r"`cam` \(K, h, w\) float16, but got \(2, 3, 3\) float64"),
    ("cam", np.zeros(2, np.int16), np.zeros((2, 3), np.float16), r"`cam` \(K, h, w\) float16, but got \(2, 3\)"),
]


@pytest.mark.parametrize(("keys", "cam", "message"), [case[1:] for case in WRONG])
def test_cams_of_another_form_are_neither_written_nor_read(tmp_path, keys, cam, message):
    with pytest.raises(ValueError, match=message):
        files.write_cam(tmp_path / "a.npz", keys, cam)
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "a.npz", keys=keys, cam=cam)
    with pytest.raises(ArtifactError, match=rf"a\.npz cannot be read \(Expected {message}"):
        files.read_cam(tmp_path / "a.npz")


@pytest.mark.parametrize(("array", "found"), [(np.zeros((2, 3), np.float16), r"\(2, 3\)"), (np.zeros((1, 2, 3)), "")])
def test_features_of_another_form_are_neither_written_nor_read(tmp_path, array, found):
    message = rf"Expected `features` \(D, h, w\) float16, but got {found}"
    with pytest.raises(ValueError, match=message):
        arrays.write_features(tmp_path / "a.npy", array)
    np.save(tmp_path / "a.npy", array)
    for read in (arrays.read_features, arrays.features_shape):
        with pytest.raises(ArtifactError, match=rf"a\.npy cannot be read \({message}"):
            read(tmp_path / "a.npy")


def test_a_value_that_is_not_finite_is_refused_with_the_name_of_its_file(tmp_path):
    cam = np.array([[[np.nan, 1, 2]]], np.float16)
    with pytest.raises(ValueError, match=r"`cam`, but got 1 NaN or infinite values of 3 for a\.npz"):
        files.write_cam(tmp_path / "a.npz", np.zeros(1, np.int16), cam)
    with pytest.raises(ValueError, match=r"`features`, but got 1 NaN or infinite values of 3 for a\.npy"):
        arrays.write_features(tmp_path / "a.npy", cam)


def test_the_grid_is_read_from_the_header_alone(tmp_path):
    """A file of a tebibyte of which only the header was written."""
    path = tmp_path / "a.npy"
    header = {"descr": "<f2", "fortran_order": False, "shape": (1 << 9, 1 << 15, 1 << 15)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
    os.truncate(path, start + (1 << 40))
    assert arrays.features_shape(path)[1:] == (1 << 15, 1 << 15)
    path.unlink()


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_features_is_not_executed_for_their_grid(tmp_path):
    path, canary = tmp_path / "a.npy", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ArtifactError, match=r"a\.npy cannot be read"):
        arrays.features_shape(path)
    assert not canary.exists()
    np.load(path, allow_pickle=True)
    assert canary.exists(), "the pickle itself must work, or this test proves nothing"


def test_a_mask_may_be_one_pixel_and_a_palette_has_bytes_for_every_value(tmp_path, palette):
    files.write_mask(tmp_path / "a.png", np.full((1, 1), 255, np.uint8), palette)
    assert files.read_mask(tmp_path / "a.png").tolist() == [[255]]
    mask = np.zeros((2, 2), np.uint8)
    for wrong in (palette.astype(np.int64), palette[:, :2], palette[:255]):
        with pytest.raises(ValueError, match=rf"`palette` \(256, 3\) uint8, but got \({wrong.shape[0]}, "):
            files.write_mask(tmp_path / "b.png", mask, wrong)
    with pytest.raises(ValueError, match=r"`mask` \(H, W\) uint8, but got \(2, 2, 1\)"):
        files.write_mask(tmp_path / "b.png", mask[:, :, None], palette)
    assert not (tmp_path / "b.png").exists()


def test_a_palette_png_of_few_colours_is_read_as_class_values(tmp_path, palette):
    """Image editors save palettes of up to 16 colours with 4 bits a pixel."""
    mask = np.array([[0, 3], [7, 15]], np.uint8)
    image = Image.fromarray(mask)
    image.putpalette(palette[:16].tobytes())
    image.save(tmp_path / "a.png", bits=4)
    assert (tmp_path / "a.png").read_bytes()[24] == 4
    np.testing.assert_array_equal(files.read_mask(tmp_path / "a.png"), mask)


@pytest.mark.parametrize(("size", "expected"), [(0, False), (1, True), (2, True)])
def test_one_byte_is_content(tmp_path, size, expected):
    (tmp_path / "a").write_bytes(b"x" * size)
    assert layout.has_content(tmp_path / "a") is expected


def test_a_name_that_the_file_system_refuses_has_no_content(tmp_path):
    assert layout.has_content(tmp_path / ("a" * 5000)) is False
    assert layout.has_content(tmp_path) is False


def test_digests_are_those_of_plain_json_so_that_old_artifacts_stay_fresh():
    text = '{"a":[1,0.5,true],"b":{"c":"\\u00e4"},"d":null}'
    settings = {"d": None, "b": {"c": "ä"}, "a": (1.0, 0.5, True)}
    assert digest_config(settings) == hashlib.sha256(text.encode()).hexdigest()
    assert digest_ids(["b", "ä", "a"]) == hashlib.sha256(b'["a", "b", "\\u00e4"]').hexdigest()


def test_a_file_is_hashed_again_when_its_size_or_its_inode_is_another(tmp_path):
    path = tmp_path / "a.ckpt"

    def expect(content: bytes) -> None:
        os.utime(path, ns=(0, 123))
        assert digest_file(path) == hashlib.sha256(content).hexdigest()

    path.write_bytes(b"one")
    expect(b"one")
    path.write_bytes(b"longer")
    expect(b"longer")
    (tmp_path / "other").write_bytes(b"LONGER")
    os.replace(tmp_path / "other", path)
    expect(b"LONGER")


def test_a_file_that_is_a_link_is_hashed_where_it_leads(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "last").symlink_to(tmp_path / "two")
    assert digest_file(tmp_path / "last") == digest_file(tmp_path / "two") != digest_file(tmp_path / "one")


def test_leaves_have_dotted_names_and_an_empty_mapping_is_a_leaf():
    assert dict(flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": {}})) == {"a.b.c": 1, "a.d": [2], "e": {}}


def test_a_manifest_of_a_later_version_with_one_more_field_is_read(describe, tmp_path):
    path = tmp_path / "manifest.json"
    made = describe()
    made.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert type(made).load(path) == made


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("split", 3, "a field has the wrong type"),
        ("count", "3", "a field has the wrong type"),
        ("inputs", {"cam": 1}, "a field has the wrong type"),
        ("settings", [], "`settings` and `info` must be objects"),
        ("info", [], "`settings` and `info` must be objects"),
        ("checkpoint", {"sha256": "0", "path": "a", "more": 1}, "`checkpoint` must have a path and a sha256"),
    ],
)
def test_a_manifest_with_a_field_of_another_type_says_so(describe, tmp_path, field, value, reason):
    path = tmp_path / "manifest.json"
    made = describe()
    made.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ArtifactError, match=rf"manifest\.json is not a manifest \(TypeError\('{reason}'\)\)"):
        type(made).load(path)


def test_a_file_with_more_cams_than_keys_is_named(tmp_path):
    keys, cam = np.zeros(1, np.int16), np.zeros((2, 3, 3), np.float16)
    np.savez(tmp_path / "a.npz", keys=keys, cam=cam)
    with pytest.raises(ArtifactError, match=r"a\.npz cannot be read \(keys \(1,\) and cam \(2, 3, 3\) disagree\)"):
        files.read_cam(tmp_path / "a.npz")


def test_the_shape_of_features_is_read_without_the_parser_of_numpy(tmp_path, monkeypatch):
    """Threads that parse headers together fail now and then in CPython 3.11."""
    shapes = [(1, 1, 1), (3072, 28, 21), (0, 5, 7)]
    for index, shape in enumerate(shapes):
        arrays.write_features(tmp_path / f"{index}.npy", np.zeros(shape, np.float16))
    whole = (tmp_path / "1.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"cut\.npy cannot be read"):
        arrays.features_shape(tmp_path / "cut.npy")
    np.save(tmp_path / "turned.npy", np.asfortranarray(np.ones((2, 3, 4), np.float16)))
    assert arrays.features_shape(tmp_path / "turned.npy") == (2, 3, 4)

    def refuse(*arguments, **options):
        raise AssertionError("numpy parses the header")

    monkeypatch.setattr(np, "load", refuse)
    assert [arrays.features_shape(tmp_path / f"{index}.npy") for index in range(3)] == shapes
