import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import DataError
from dhr_lightning.importing.pickles import read_pickled_dict
from dhr_lightning.importing.read import read_irn_cam

CLASSES = ClassSet(("background", "cat", "dog", "car"))


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def save(path: Path, content: object, protocol: int = 4) -> Path:
    """What `numpy.save` writes, with any pickle protocol: old releases used 2 and 3."""
    array = np.array(content, dtype=object)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, stream, protocol=protocol)
    return path


def in_tensor(content: object, *, zipped: bool) -> Call:
    """A call hidden in the bytes of a tensor's storage."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_numbers_and_tensors_are_read(tmp_path: Path, protocol: int):
    content = {
        2007000032: np.eye(3, dtype=np.float32)[1],
        np.int32(7): np.float32(0.5),
        "order": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "tensor": torch.arange(12.0).reshape(3, 4).T,
        "list": [1, (2.5, None, True)],
    }
    found = read_pickled_dict(save(tmp_path / "a.npy", content, protocol))
    assert found.keys() == content.keys()
    assert np.array_equal(found[2007000032], [0, 1, 0])
    assert (found[7], found["list"]) == (0.5, [1, (2.5, None, True)])
    assert np.array_equal(found["order"], content["order"])
    assert isinstance(found["tensor"], np.ndarray)
    assert np.array_equal(found["tensor"], content["tensor"].numpy())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Call(os.system, f"touch {mark}"),
        lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Call(getattr, 1, "real"),
        lambda mark: Call(np.ndarray, (3,)),
        lambda mark: Call(np._core.multiarray._reconstruct, np.dtype, (0,), b"b"),
        lambda mark: Call(np._core.multiarray._reconstruct, np.memmap, (0,), b"b"),
        lambda mark: Call(np.fromfile, str(mark)),
        lambda mark: in_tensor(Call(os.system, f"touch {mark}"), zipped=True),
        lambda mark: in_tensor(Call(os.system, f"touch {mark}"), zipped=False),
    ],
)
def test_code_in_a_file_is_refused_and_never_runs(tmp_path: Path, attack: Any, protocol: int):
    mark = tmp_path / "ran"
    path = save(tmp_path / "bad.npy", {"keys": attack(mark)}, protocol)
    with pytest.raises(DataError, match=r"bad\.npy (is refused: .*not run|cannot be read)"):
        read_pickled_dict(path)
    assert not mark.exists()


def test_the_attack_would_work_elsewhere(tmp_path: Path):
    path = save(tmp_path / "bad.npy", {"keys": Call(os.system, f"touch {tmp_path / 'ran'}")})
    np.load(path, allow_pickle=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no array at all", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        read_pickled_dict(tmp_path / "a.npy")


def test_plain_arrays_lists_and_cut_files_are_refused(tmp_path: Path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"holds an array \(3,\) float64, not a dictionary"):
        read_pickled_dict(tmp_path / "plain.npy")
    with pytest.raises(DataError, match="holds str, not a dictionary"):
        read_pickled_dict(save(tmp_path / "text.npy", "text"))
    path = save(tmp_path / "cut.npy", {"keys": np.zeros(99)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cut\.npy (cannot be read|is refused)"):
        read_pickled_dict(path)


def test_both_forms_of_activation_maps_are_read(tmp_path: Path):
    maps = torch.rand(2, 3, 4)
    irn = save(tmp_path / "irn.npy", {"keys": torch.tensor([2, 0]), "cam": maps, "high_res": np.zeros((2, 12, 16))})
    keys, cam = read_irn_cam(irn, CLASSES)
    assert (keys.tolist(), keys.dtype, cam.dtype) == ([1, 3], np.int16, np.float16)
    assert np.array_equal(cam, maps.numpy()[[1, 0]].astype(np.float16))
    seam = save(tmp_path / "seam.npy", {2: maps[0].numpy(), 0: maps[1].numpy()})
    assert all(np.array_equal(*pair) for pair in zip(read_irn_cam(seam, CLASSES), (keys, cam), strict=True))
    keys, cam = read_irn_cam(seam, ClassSet(("a", "b", "c"), has_background=False))
    assert keys.tolist() == [0, 2]
    assert [array.shape for array in read_irn_cam(save(tmp_path / "none.npy", {}), CLASSES)] == [(0,), (0, 1, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": [3], "cam": np.zeros((1, 2, 2))}, r"keys \[3\], but they count the 3 classes from 0"),
        ({"keys": [-1], "cam": np.zeros((1, 2, 2))}, r"keys \[-1\]"),
        ({"keys": [0, 1], "cam": np.zeros((1, 2, 2))}, r"keys \(2,\) and maps \(1, 2, 2\)"),
        ({"keys": [0], "cam": np.full((1, 2, 2), 7.0)}, "values from 7 to 7; expected"),
        ({"keys": [0], "cam": np.full((1, 2, 2), np.nan)}, "values from nan to nan"),
        ({"keys": [0]}, r"keys \(1,\) and maps \(\)"),
        ({0: np.zeros((2, 2)), 1: np.zeros((3, 2))}, "no activation maps of one size"),
        ({"a": 1}, r"the entries \['a'\]"),
    ],
)
def test_maps_that_cannot_be_meant_are_refused(tmp_path: Path, content: dict[Any, Any], message: str):
    with pytest.raises(DataError, match=message):
        read_irn_cam(save(tmp_path / "a.npy", content), CLASSES)
