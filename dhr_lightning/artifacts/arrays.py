"""Files of features and of vectors: one numpy array for each image."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dhr_lightning.artifacts.files import UNREADABLE, absent, expect, expect_finite, read_whole, unreadable, write_bytes

_HEADER_BYTES = 128  # of a file of features
_SHAPE = re.compile(rb"'descr': '<f2', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), }\s*\n$")


def write_features(path: Path, features: NDArray[np.float16]) -> None:
    """Write the feature grid of one image.

    Args:
        path: final name, `.npy`.
        features: `(D, h, w)` float16.

    Raises:
        ValueError: if the shape or type differs from the above, or `features` is not finite.
    """
    expect(features, "features", np.float16, "(D, h, w)", 3)
    _write(path, features, "features")


def _write(path: Path, array: NDArray[Any], name: str) -> None:
    expect_finite(array, name, path)
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
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
        expect(features, "features", np.float16, "(D, h, w)", 3)
    except FileNotFoundError as error:
        raise absent(path) from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error
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
        expect(features, "features", np.float16, "(D, h, w)", 3)
    except FileNotFoundError as error:
        raise absent(path) from error
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return features


def write_vectors(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write some vectors of one image, `(N, D)` float32, as `.npy`.

    Raises:
        ValueError: if the shape or type differs from the above, or `vectors` is not finite.
    """
    expect(vectors, "vectors", np.float32, "(N, D)", 2)
    _write(path, vectors, "vectors")


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Read what `write_vectors` wrote: `(N, D)` float32.

    Raises:
        ArtifactError: if the file is absent, truncated, corrupt, pickled, or holds another array.
    """
    data = read_whole(path)
    try:
        vectors: NDArray[np.float32] = np.load(BytesIO(data), allow_pickle=False)
        expect(vectors, "vectors", np.float32, "(N, D)", 2)
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error
    return vectors
