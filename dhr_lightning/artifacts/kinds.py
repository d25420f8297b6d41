"""What artifacts are: one row for each kind, and everything that follows from its name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dhr_lightning.artifacts.arrays import read_features, read_vectors, write_features, write_vectors
from dhr_lightning.artifacts.files import read_cam, read_mask, write_bytes, write_cam, write_mask
from dhr_lightning.errors import ArtifactError

Arrays = tuple[NDArray[Any], ...]
Role = Literal["cam", "mask", "label", "features", "prediction", "map", "vectors"]
Geometry = Literal["nearest", "bilinear", "sampled", "none"]
_ROUND = re.compile(r"round_(\d{2,})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Codec:
    """How one image of a kind is written, read and brought into the types of its file.

    Args:
        extension: of the file, with its dot.
        write: `(path, arrays, palette)`; palette `(256, 3)` uint8 or None.
        read: path -> arrays.
        dtypes: of the arrays, in their order.
        needs_palette: whether `write` needs one.
    """

    extension: str
    write: Callable[[Path, Arrays, NDArray[np.uint8] | None], None]
    read: Callable[[Path], Arrays]
    dtypes: tuple[type[np.generic], ...]
    needs_palette: bool = False

    def convert(self, arrays: Sequence[NDArray[Any]]) -> Arrays:
        """Arrays of any number type in the types of the file."""
        return tuple(array.astype(dtype) for array, dtype in zip(arrays, self.dtypes, strict=True))


def _write_mask(path: Path, arrays: Arrays, palette: NDArray[np.uint8] | None) -> None:
    if palette is None:
        raise ValueError(f"Expected a `palette` to write {path}, but got None.")
    write_mask(path, arrays[0], palette)


def _write_map(path: Path, arrays: Arrays, palette: NDArray[np.uint8] | None) -> None:
    """A map of strengths `(h, w)` uint8, on any grid, as a grey PNG."""
    buffer = BytesIO()
    Image.fromarray(arrays[0]).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


PNG = Codec(".png", _write_mask, lambda path: (read_mask(path),), (np.uint8,), needs_palette=True)
GREY = Codec(".png", _write_map, lambda path: (read_mask(path),), (np.uint8,))
NPZ = Codec(".npz", lambda path, arrays, _: write_cam(path, *arrays), read_cam, (np.int16, np.float16))
NPY = Codec(
    ".npy", lambda path, arrays, _: write_features(path, *arrays), lambda path: (read_features(path),), (np.float16,)
)
VECTORS = Codec(
    ".npy", lambda path, arrays, _: write_vectors(path, *arrays), lambda path: (read_vectors(path),), (np.float32,)
)


@dataclass(frozen=True)
class ArtifactKind:
    """One kind of artifact.

    Args:
        name: last part of the address of an artifact, see `kind_of`.
        codec: its files.
        role: what it is to a reader of the report.
        geometry: how it follows the augmentation of an image: a class value from the `nearest` pixel, scores
            `bilinear`, features `sampled` at the cells of the crop, or `none`: it cannot be augmented.
        about: one line for people.
    """

    name: str
    codec: Codec
    role: Role
    geometry: Geometry
    about: str

    @property
    def is_mask(self) -> bool:
        """Whether its files hold one class value for each pixel."""
        return self.codec is PNG


KINDS: Mapping[str, ArtifactKind] = {
    kind.name: kind
    for kind in (
        ArtifactKind("cam", NPZ, "cam", "bilinear", "class activation maps of the tags, in [0, 1]"),
        ArtifactKind("mask", PNG, "mask", "nearest", "pseudo mask of class values, 255 = ignore"),
        ArtifactKind("label", PNG, "label", "nearest", "confident labels, 255 where unsure"),
        ArtifactKind("features", NPY, "features", "sampled", "dense features on a grid over the image"),
        ArtifactKind("crops", VECTORS, "vectors", "none", "mean feature of each of the five crops of an image"),
        ArtifactKind("boundary", GREY, "map", "none", "strength of boundaries on the network's grid, 255 = certain"),
        ArtifactKind("prediction", PNG, "prediction", "nearest", "mask that a segmenter predicts without tags"),
    )
}


def kind_of(address: str) -> ArtifactKind:
    """Kind of an artifact by its address: the last part, or the one before the round of a mask refresh.

    Raises:
        ValueError: if no kind has that name.
    """
    kind = find_kind(address)
    if kind is None:
        raise ValueError(f"Expected an address that ends in one of {', '.join(KINDS)}, but got {address!r}.")
    return kind


def find_kind(address: str) -> ArtifactKind | None:
    """As `kind_of`, or None."""
    parts = address.split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        return None
    if len(parts) > 1 and round_number(address) is not None:
        parts = parts[:-1]
    return KINDS.get(parts[-1])


def round_address(address: str, number: int) -> str:
    """Address of the masks of one refresh: `dhr/1a2b/mask`, 3 -> `dhr/1a2b/mask/round_03`.

    Raises:
        ValueError: if `number` is negative.
    """
    if number < 0:
        raise ValueError(f"Expected a round >= 0, but got {number}.")
    return f"{address}/round_{number:02d}"


def round_number(address: str) -> int | None:
    """Round of a mask refresh that an address ends in; None for every other address or spelling."""
    before, _, last = address.rpartition("/")
    match = _ROUND.fullmatch(last)
    number = int(match[1]) if match and before else None
    return number if number is not None and round_address(before, number) == address else None


def check_name(name: str, what: str) -> str:
    """Return `name` if it is one plain folder name.

    Raises:
        ArtifactError: if it is empty, hidden, or holds anything but letters, digits, `_`, `-` and `.`.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"The {what} {name!r} cannot name a folder. Use letters, digits, `_`, `-` and `.` only.")
    return name
