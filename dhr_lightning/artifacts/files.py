"""Atomic reading and writing of the files that stages exchange: masks, CAMs, features and JSON."""

import errno
import json
import os
import secrets
import shutil
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dhr_lightning.errors import ArtifactError, run_command

TEMPORARY_PREFIX = ".tmp-"
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, KeyError, MemoryError, struct.error, zipfile.BadZipFile)


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
        raise absent(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise unreadable(path, f"expected a JSON object, but got {type(content).__name__}")
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
    expect(mask, "mask", np.uint8, "(H, W)", 2)
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
    data = read_whole(path)
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            mode = image.mode
            mask = np.array(image) if mode in ("P", "L") else None
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from error
    # Pillow fills a cut file with zeros when LOAD_TRUNCATED_IMAGES is set; a whole PNG always has its end chunk.
    if b"IEND" not in data[-4096:]:
        raise unreadable(path, "the PNG has no end, so it was cut off")
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
    expect(keys, "keys", np.int16, "(K,)", 1)
    expect(cam, "cam", np.float16, "(K, h, w)", 3)
    if len(keys) != len(cam):
        raise ValueError(f"Expected one CAM per key, but got keys {keys.shape} and cam {cam.shape}.")
    expect_finite(cam, "cam", path)
    buffer = BytesIO()
    np.savez(buffer, keys=keys, cam=cam)
    write_bytes(path, buffer.getvalue())


def read_cam(path: Path) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """Read what `write_cam` wrote: `keys` `(K,)` int16 and `cam` `(K, h, w)` float16.

    Raises:
        ArtifactError: if the file is absent, truncated, corrupt, pickled, or holds other arrays.
    """
    data = read_whole(path)
    try:
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            keys, cam = archive["keys"], archive["cam"]
        expect(keys, "keys", np.int16, "(K,)", 1)
        expect(cam, "cam", np.float16, "(K, h, w)", 3)
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error
    if len(keys) != len(cam):
        raise unreadable(path, f"keys {keys.shape} and cam {cam.shape} disagree")
    return keys, cam


def read_whole(path: Path) -> bytes:
    """All bytes of a file, or the error that says what to do."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise absent(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def absent(path: Path) -> ArtifactError:
    """The error for a file that is not there."""
    return ArtifactError(f"{path} does not exist. Run `{run_command()}`, which makes it again.")


def unreadable(path: Path, reason: object) -> ArtifactError:
    """The error for a file that is damaged."""
    return ArtifactError(
        f"{path} cannot be read ({reason}). Delete the file and run `{run_command()}`; the other files are kept."
    )


def expect(array: NDArray[Any], name: str, dtype: type[np.generic], letters: str, dimensions: int) -> None:
    """Check the number type and dimensions of an array.

    Raises:
        ValueError: if they differ.
    """
    if array.ndim != dimensions or array.dtype != dtype:
        wanted = np.dtype(dtype).name
        raise ValueError(f"Expected `{name}` {letters} {wanted}, but got {array.shape} {array.dtype}.")


def expect_finite(array: NDArray[Any], name: str, path: Path) -> None:
    """Check the values of an array.

    Raises:
        ValueError: if one is not finite.
    """
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(
            f"Expected finite `{name}`, but got {count} NaN or infinite values of {array.size} for {path.name}. "
            "Look for an overflow (float16 ends at 65504) in the network that made them."
        )
