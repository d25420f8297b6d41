"""Atomic reading and writing of the files that stages exchange: masks, CAMs, features and JSON."""

import errno
import json
import os
import re
import secrets
import shutil
import struct
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dhr_lightning.errors import ArtifactError, run_command

TEMPORARY_PREFIX = ".tmp-"
_HEADER_BYTES = 128  # of a file of features
_SHAPE = re.compile(rb"'descr': '<f2', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), }\s*\n$")
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, KeyError, MemoryError, struct.error, zipfile.BadZipFile)


def write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file so that `path` holds either its old content or all of `data`, even after a kill.

    Args:
        path: final name; its folder must exist.
        data: the whole content.
        durable: also wait until content and name are on the disk, so that a power cut cannot lose them.

    Raises:
        ArtifactError: if the disk is full; names the bytes needed and free.
        OSError: for every other failure of the file system.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise ArtifactError(
                f"No space left to write {path}: {len(data)} bytes needed, {free} bytes free (or the quota is used "
                "up). Free some space and run the same command again; finished files are kept."
            ) from error
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` (created, replaced or removed) are on the disk.

    Windows opens no folders and needs no such call: its file system keeps a journal of the names.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, atomically and durably.

    Raises:
        ValueError: if `content` holds NaN or infinity, which are not JSON.
        TypeError: if `content` holds a value that JSON cannot express.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode(), durable=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: if the file is absent, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _absent(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"expected a JSON object, but got {type(content).__name__}")
    return content


def write_mask(path: Path, mask: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    """Write class values as a palette PNG that any viewer shows in colour.

    Args:
        path: final name, `.png`.
        mask: `(H, W)` uint8 class values, 255 = ignore.
        palette: `(256, 3)` uint8 RGB colour of each value.

    Raises:
        ValueError: if a shape or type differs from the above.
    """
    _expect(mask, "mask", np.uint8, "(H, W)", 2)
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"Expected `palette` (256, 3) uint8, but got {palette.shape} {palette.dtype}.")
    if mask.size == 0:
        raise ValueError(f"Expected `mask` with at least one pixel, but got {mask.shape}.")
    image = Image.fromarray(mask)
    image.putpalette(palette.tobytes())
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read the class values of a palette (or 8-bit grey) PNG.

    Returns:
        `(H, W)` uint8 class values, writable.

    Raises:
        ArtifactError: if the file is absent, truncated, corrupt, or holds colours instead of class values.
    """
    data = _read_bytes(path)
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            mode = image.mode
            mask = np.array(image) if mode in ("P", "L") else None
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    # Pillow fills a cut file with zeros when LOAD_TRUNCATED_IMAGES is set; a whole PNG always has its end chunk.
    if b"IEND" not in data[-4096:]:
        raise _unreadable(path, "the PNG has no end, so it was cut off")
    bits = data[24]
    if mask is None or (mode == "L" and bits != 8):
        raise ArtifactError(
            f"{path} holds {bits}-bit {mode} pixels, not class values: the palette was probably expanded by an image "
            "editor or converter. Save it as an 8-bit palette PNG whose indices are the class values."
        )
    return mask


def write_cam(path: Path, keys: NDArray[np.int16], cam: NDArray[np.float16]) -> None:
    """Write the CAMs of the tagged classes of one image.

    Args:
        path: final name, `.npz`.
        keys: `(K,)` int16 class values; K may be 0.
        cam: `(K, h, w)` float16 in [0, 1].

    Raises:
        ValueError: if a shape or type differs from the above, or `cam` is not finite.
    """
    _expect(keys, "keys", np.int16, "(K,)", 1)
    _expect(cam, "cam", np.float16, "(K, h, w)", 3)
    if len(keys) != len(cam):
        raise ValueError(f"Expected one CAM per key, but got keys {keys.shape} and cam {cam.shape}.")
    _expect_finite(cam, "cam", path)
    buffer = BytesIO()
    np.savez(buffer, keys=keys, cam=cam)
    write_bytes(path, buffer.getvalue())


def read_cam(path: Path) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """Read what `write_cam` wrote: `keys` `(K,)` int16 and `cam` `(K, h, w)` float16.

    Raises:
        ArtifactError: if the file is absent, truncated, corrupt, pickled, or holds other arrays.
    """
    data = _read_bytes(path)
    try:
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            keys, cam = archive["keys"], archive["cam"]
        _expect(keys, "keys", np.int16, "(K,)", 1)
        _expect(cam, "cam", np.float16, "(K, h, w)", 3)
    except (*_UNREADABLE, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if len(keys) != len(cam):
        raise _unreadable(path, f"keys {keys.shape} and cam {cam.shape} disagree")
    return keys, cam


def write_features(path: Path, features: NDArray[np.float16]) -> None:
    """Write the feature grid of one image.

    Args:
        path: final name, `.npy`.
        features: `(D, h, w)` float16.

    Raises:
        ValueError: if the shape or type differs from the above, or `features` is not finite.
    """
    _expect(features, "features", np.float16, "(D, h, w)", 3)
    _expect_finite(features, "features", path)
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(features), allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def features_shape(path: Path) -> tuple[int, int, int]:
    """Shape `(D, h, w)` of the features in a file of `write_features`; only the header is read.

    Raises:
        ArtifactError: if the file is absent, corrupt, or holds another array.
    """
    try:
        if (shape := _plain_shape(path)) is not None:
            return shape
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        _expect(features, "features", np.float16, "(D, h, w)", 3)
    except FileNotFoundError as error:
        raise _absent(path) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return features.shape[0], features.shape[1], features.shape[2]


def _plain_shape(path: Path) -> tuple[int, int, int] | None:
    """Shape by the header of a whole file of `write_features`, or `None` for any other.

    numpy parses headers with `ast`, which fails now and then in several threads at once (CPython 3.11: "AST constructor
    recursion depth mismatch").
    """
    with path.open("rb") as stream:
        found = _SHAPE.search(stream.read(_HEADER_BYTES))
    shape = None if found is None else (int(found[1]), int(found[2]), int(found[3]))
    whole = shape is not None and path.stat().st_size == _HEADER_BYTES + 2 * shape[0] * shape[1] * shape[2]
    return shape if whole else None


def read_features(path: Path, channels: Sequence[slice] | None = None) -> NDArray[np.float16]:
    """Read what `write_features` wrote: `(D, h, w)` float16, or some of its channels, without reading the others.

    Args:
        path: of the file.
        channels: ranges to read, one after another in the result.

    Raises:
        ArtifactError: if the file is absent, truncated, corrupt, pickled, or holds another array.
    """
    try:
        if channels is None:
            with path.open("rb") as stream:
                features: NDArray[np.float16] = np.lib.format.read_array(stream, allow_pickle=False)
        else:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            features = np.concatenate([stored[part] for part in channels])
        _expect(features, "features", np.float16, "(D, h, w)", 3)
    except FileNotFoundError as error:
        raise _absent(path) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return features


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _absent(path) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _absent(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} does not exist. Run `{run_command()}`, which makes it again.")


def _unreadable(path: Path, reason: object) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be read ({reason}). Delete the file and run `{run_command()}`; the other files are kept."
    )


def _expect(array: NDArray[Any], name: str, dtype: type[np.generic], letters: str, dimensions: int) -> None:
    if array.ndim != dimensions or array.dtype != dtype:
        wanted = np.dtype(dtype).name
        raise ValueError(f"Expected `{name}` {letters} {wanted}, but got {array.shape} {array.dtype}.")


def _expect_finite(array: NDArray[np.float16], name: str, path: Path) -> None:
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(
            f"Expected finite `{name}`, but got {count} NaN or infinite values of {array.size} for {path.name}. "
            "Look for an overflow (float16 ends at 65504) in the network that made them."
        )
