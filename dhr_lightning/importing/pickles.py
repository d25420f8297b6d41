"""Read pickled dictionaries in `.npy` files, as IRNet and its relatives write them, and run no code of theirs."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dhr_lightning.errors import DataError

_NDARRAY = object()  # stands for the type, which a file may name but not call
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


def _decode(text: str, encoding: str) -> bytes:
    """What pickle protocol 2 calls to make bytes; only the one encoding that it uses."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _reconstruct(kind: object, shape: tuple[int, ...], code: bytes | str) -> npt.NDArray[Any]:
    """The empty array that an array's state is then put into; a subclass of ndarray is refused."""
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError(f"it asks for an array of type {kind!r}")
    array: npt.NDArray[Any] = np.ndarray(shape, _dtype(code.decode() if isinstance(code, bytes) else code))
    return array


def _dtype(code: str, *_: object) -> np.dtype[Any]:
    if not isinstance(code, str):
        raise pickle.UnpicklingError(f"it asks for an array type made of {type(code).__name__}")
    return np.dtype(code)


def _scalar(kind: np.dtype[Any], data: bytes) -> np.generic:
    value: np.generic = np.frombuffer(data, dtype=kind)[0]
    return value


def _from_buffer(
    data: bytes, kind: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> npt.NDArray[Any]:
    return np.frombuffer(data, dtype=kind).reshape(shape, order=order)


def _storage(data: bytes) -> Any:  # noqa: ANN401 - storages have no common type
    """Contents of a torch tensor. Torch's own function would unpickle them with all rights."""
    import torch

    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:  # torch's own text advises to switch its protection off
        raise pickle.UnpicklingError("a tensor in it holds more than numbers") from error


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> object:  # noqa: ANN401
    from torch._utils import _rebuild_tensor

    return _rebuild_tensor(storage, offset, size, stride).numpy()  # type: ignore[no-untyped-call]


_ALLOWED: Mapping[tuple[str, str], object] = {
    **{(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_frombuffer"): _from_buffer for module in _NUMPY},
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _decode,
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, lists, tuples, numbers, text, arrays and tensors; every other name ends the reading."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a number")
        return _ALLOWED[module, name]


def read_pickled_dict(path: Path) -> dict[Any, Any]:
    """Read a dictionary of plain values, arrays and tensors from a `.npy` file.

    Only the names that arrays need can be loaded, and each is a function of this module or of NumPy's core: code in the
    file never runs. Tensors become arrays.

    Raises:
        DataError: if the file is missing, is not such a file, or asks for anything else.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            if not dtype.hasobject:
                raise DataError(
                    f"{path} holds an array {shape} {dtype}, not a dictionary. Give the file of the release."
                )
            content = _Unpickler(stream, encoding="latin1").load()
    except (OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({error}). Restore the file.") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is refused: {error}. Its code was not run; do not load the file otherwise.") from error
    if isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
        content = content.item()
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, not a dictionary. Give the file of the release.")
    return content
