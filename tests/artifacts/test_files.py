import errno
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from dhr_lightning.artifacts import arrays, files
from dhr_lightning.errors import ArtifactError


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def cam() -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(1).random((3, 6, 7)).astype(np.float16)
    return np.array([1, 5, 20], np.int16), values


def write_three(
    folder: Path, palette: np.ndarray, cam: tuple[np.ndarray, np.ndarray]
) -> dict[Path, Callable[..., Any]]:
    mask = np.random.default_rng(2).integers(0, 21, (40, 50), dtype=np.uint8)
    paths = {
        folder / "a.png": files.read_mask,
        folder / "a.npz": files.read_cam,
        folder / "a.npy": arrays.read_features,
    }
    files.write_mask(folder / "a.png", mask, palette)
    files.write_cam(folder / "a.npz", *cam)
    arrays.write_features(folder / "a.npy", cam[1])
    return paths


def test_mask_keeps_every_value_and_shows_the_palette(tmp_path, palette):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    files.write_mask(tmp_path / "a.png", mask, palette)
    back = files.read_mask(tmp_path / "a.png")
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[mask])


def test_mask_of_a_sliced_array_is_written_in_order(tmp_path, palette):
    mask = np.arange(100, dtype=np.uint8).reshape(10, 10).T[::2]
    files.write_mask(tmp_path / "a.png", mask, palette)
    np.testing.assert_array_equal(files.read_mask(tmp_path / "a.png"), mask)


def test_read_mask_is_writable(tmp_path, palette):
    files.write_mask(tmp_path / "a.png", np.zeros((2, 2), np.uint8), palette)
    mask = files.read_mask(tmp_path / "a.png")
    mask[0, 0] = 7
    assert mask[0, 0] == 7


def test_cam_and_features_come_back_bit_for_bit(tmp_path, cam):
    files.write_cam(tmp_path / "a.npz", *cam)
    keys, values = files.read_cam(tmp_path / "a.npz")
    np.testing.assert_array_equal(keys, cam[0])
    np.testing.assert_array_equal(values, cam[1])
    assert (keys.dtype, values.dtype) == (np.int16, np.float16)
    arrays.write_features(tmp_path / "a.npy", cam[1].transpose(0, 2, 1))
    np.testing.assert_array_equal(arrays.read_features(tmp_path / "a.npy"), cam[1].transpose(0, 2, 1))


def test_cam_of_an_image_without_tags(tmp_path):
    files.write_cam(tmp_path / "a.npz", np.zeros(0, np.int16), np.zeros((0, 4, 4), np.float16))
    keys, values = files.read_cam(tmp_path / "a.npz")
    assert keys.shape == (0,)
    assert values.shape == (0, 4, 4)


def test_cam_is_stored_uncompressed_and_identical_each_time(tmp_path, cam):
    for name in ("a.npz", "b.npz"):
        files.write_cam(tmp_path / name, *cam)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert sorted(archive.namelist()) == ["cam.npy", "keys.npy"]
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file_names_the_path_and_the_command(tmp_path, palette, cam, share):
    for path, read in write_three(tmp_path, palette, cam).items():
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ArtifactError, match=rf"{path}.*`python -m dhr_lightning run`"):
            read(path)


def test_truncated_mask_is_refused_even_when_pillow_is_told_to_accept_it(tmp_path, palette, monkeypatch):
    path = tmp_path / "a.png"
    files.write_mask(path, np.random.default_rng(0).integers(0, 21, (64, 64), dtype=np.uint8), palette)
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(path) as image:
        image.load()
    with pytest.raises(ArtifactError, match="cut off"):
        files.read_mask(path)


def test_flipped_bit_in_a_cam_is_noticed(tmp_path, cam):
    files.write_cam(tmp_path / "a.npz", *cam)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(cam[1].tobytes()) + 11] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ArtifactError, match="CRC"):
        files.read_cam(tmp_path / "a.npz")


def test_header_that_claims_an_absurd_size_is_an_error_not_a_crash(tmp_path):
    header = {"descr": "<f2", "fortran_order": False, "shape": (1 << 20, 1 << 20, 1 << 15)}
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(ArtifactError, match=r"a\.npy"):
        arrays.read_features(tmp_path / "a.npy")


def test_absent_file_says_which_stage_makes_it(tmp_path):
    for read in (files.read_mask, files.read_cam, arrays.read_features, files.read_json):
        with pytest.raises(ArtifactError, match=r"does not exist.*`python -m dhr_lightning run`"):
            read(tmp_path / "none")


@pytest.mark.parametrize(("mode", "shape"), [("RGB", (4, 4, 3)), ("RGBA", (4, 4, 4))])
def test_mask_with_expanded_palette_is_refused(tmp_path, mode, shape):
    Image.fromarray(np.zeros(shape, np.uint8), mode=None).save(tmp_path / "a.png")
    with pytest.raises(ArtifactError, match=rf"{mode} pixels.*palette was probably expanded"):
        files.read_mask(tmp_path / "a.png")


def test_sixteen_bit_and_few_bit_grey_are_refused_because_pillow_would_scale_them(tmp_path):
    Image.fromarray(np.full((4, 4), 3, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "few.png", bits=4)
    data = bytearray((tmp_path / "few.png").read_bytes())
    for name in ("deep.png", "few.png"):
        if name == "few.png" and data[24] == 8:
            pytest.skip("this Pillow cannot write 4-bit grey")
        with pytest.raises(ArtifactError, match="not class values"):
            files.read_mask(tmp_path / name)


def test_eight_bit_grey_mask_is_read_as_class_values(tmp_path):
    mask = np.array([[0, 20], [255, 7]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(files.read_mask(tmp_path / "a.png"), mask)


def test_other_image_format_under_the_name_of_a_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png", format="BMP")
    with (tmp_path / "a.png").open("ab") as stream:
        stream.write(b"IEND")
    with pytest.raises(ArtifactError, match="cannot identify"):
        files.read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["npz", "npy", "bare"])
def test_pickle_is_refused_and_never_executed(tmp_path, form):
    canary = tmp_path / "executed"
    poison = np.empty((1, 1, 1), object)
    poison[0, 0, 0] = Canary(canary)
    path = tmp_path / f"a.{'npz' if form == 'npz' else 'npy'}"
    if form == "npz":
        np.savez(path, keys=np.zeros(1, np.int16), cam=poison)
    elif form == "npy":
        np.save(path, poison, allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Canary(canary)))
    for read in (files.read_cam, arrays.read_features):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read(path)
    assert not canary.exists()
    loaded = np.load(path, allow_pickle=True)
    _ = loaded["cam"] if form == "npz" else loaded
    assert canary.exists(), "the poison itself must work, or this test proves nothing"


def test_npz_with_other_arrays_is_refused(tmp_path, cam):
    np.savez(tmp_path / "a.npz", keys=cam[0], other=cam[1])
    with pytest.raises(ArtifactError, match="cam"):
        files.read_cam(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", keys=cam[0], cam=cam[1].astype(np.float32))
    with pytest.raises(ArtifactError, match="float16"):
        files.read_cam(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", keys=cam[0][:2], cam=cam[1])
    with pytest.raises(ArtifactError, match="disagree"):
        files.read_cam(tmp_path / "a.npz")


def test_wrong_types_and_shapes_are_refused_before_writing(tmp_path, palette, cam):
    keys, values = cam
    with pytest.raises(ValueError, match=r"`mask` \(H, W\) uint8.*int64"):
        files.write_mask(tmp_path / "a", np.zeros((2, 2), np.int64), palette)
    with pytest.raises(ValueError, match=r"`palette` \(256, 3\)"):
        files.write_mask(tmp_path / "a", np.zeros((2, 2), np.uint8), palette[:21])
    with pytest.raises(ValueError, match="at least one pixel"):
        files.write_mask(tmp_path / "a", np.zeros((0, 2), np.uint8), palette)
    with pytest.raises(ValueError, match="one CAM per key"):
        files.write_cam(tmp_path / "a", keys[:2], values)
    with pytest.raises(ValueError, match=r"`features` \(D, h, w\) float16.*float32"):
        arrays.write_features(tmp_path / "a", values.astype(np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_refused(tmp_path, cam, bad):
    keys, values = cam
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match="1 NaN or infinite values of 126"):
        files.write_cam(tmp_path / "a", keys, values)
    with pytest.raises(ValueError, match="finite `features`"):
        arrays.write_features(tmp_path / "a", values)


def fail_with(code: int) -> Callable[..., None]:
    def replace(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return replace


def test_full_disk_keeps_the_old_file_and_names_the_bytes(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(os, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(ArtifactError, match=r"No space left.*12345 bytes needed, \d+ bytes free"):
        files.write_bytes(path, b"x" * 12345)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.bin"]


def test_other_failures_are_passed_on_and_leave_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        files.write_bytes(tmp_path / "a.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def replace(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_temporary_file_lies_in_the_same_folder_under_the_swept_name(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append(Path(old)), replace(old, new)))
    files.write_bytes(tmp_path / "a.bin", b"new")
    assert seen[0].parent == tmp_path
    assert seen[0].name.startswith(f".tmp-{os.getpid()}-")


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_durable_file_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path, disk_events):
    files.write_bytes(tmp_path / "a.bin", b"new", durable=True)
    assert disk_events == ["sync file", "replace a.bin", "sync folder"]


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"ä": [1, 0.5, None]})
    assert files.read_json(path) == {"ä": [1, 0.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"ä": [1, 0.5, None]}
    for text in ("{", "[1]", "", '{"a": 1', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"a\.json cannot be read"):
            files.read_json(path)


def test_folders_are_not_synced_where_the_system_opens_none(tmp_path, monkeypatch, disk_events):
    files.write_json(tmp_path / "a.json", {})
    assert disk_events == ["sync file", "replace a.json", "sync folder"]
    disk_events.clear()
    monkeypatch.delattr(os, "O_DIRECTORY")  # as on Windows
    files.write_json(tmp_path / "b.json", {})
    assert disk_events == ["sync file", "replace b.json"]
