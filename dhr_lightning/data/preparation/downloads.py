"""Fetch official files on request: resumed after a break, compared with their published checksums."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dhr_lightning.errors import DataError
from dhr_lightning.progress import log, track

_BLOCK = 1_000_000
_TIMEOUT = 60  # seconds without a byte
_NOTHING_LEFT = 416  # the server's answer to a range that begins at the end of the file or behind it


def fetch(url: str, path: Path, *, checksum: str = "") -> None:
    """Download a file; a part of an earlier try is continued where the server allows it.

    Args:
        url: `https://` or `http://`.
        path: final name; it appears when the file is whole and its checksum is right.
        checksum: `md5:...`, `sha1:...` or `sha256:...`; empty if none is published.

    Raises:
        DataError: if the server cannot be reached, sends less than it announced, or the checksum differs.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("ab") as file:
            _append(url, file, name=path.name)
    except OSError as error:  # requests derives its errors from it
        raise DataError(
            f"{url} cannot be downloaded ({error}). Run the same command again to continue, or fetch the file by hand "
            f"and put it at {path}."
        ) from error
    try:
        verify(part, checksum, name=path.name)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def _append(url: str, file: BinaryIO, *, name: str) -> None:
    """Add what the file lacks, or all of it if the server knows no ranges."""
    from pooch import HTTPDownloader

    def start_again(response: Any, **_: object) -> None:  # noqa: ANN401 - requests ships no types
        if response.status_code == 200:
            file.truncate(0)

    start = file.tell()
    # A stream that the server compresses on the fly has no ranges.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    download = HTTPDownloader(
        progressbar=_Progress(f"{name} (MB)"),
        chunk_size=_BLOCK,
        timeout=_TIMEOUT,
        headers=headers,
        hooks={"response": start_again},
    )
    try:
        download(url, file, None)
    except OSError as error:
        response = getattr(error, "response", None)
        if response is None or response.status_code != _NOTHING_LEFT:
            raise
        if response.headers.get("Content-Range") != f"bytes */{start}":
            file.truncate(0)  # longer than what the server has: the next try starts from the beginning
            raise


def verify(path: Path, checksum: str, *, name: str = "") -> None:
    """Compare a file with its published checksum; without one, say so.

    Raises:
        DataError: if they differ; names both.
    """
    from pooch import file_hash

    name = name or path.name
    if not checksum:
        log.info("%s: no checksum is published, so only its size was compared", name)
        return
    log.info("comparing %s with its checksum", name)
    kind, _, expected = checksum.partition(":")
    found = file_hash(path, alg=kind)
    if found != expected:
        raise DataError(
            f"{name} has {kind} {found}, expected {expected}: the file is damaged or not official. "
            "Delete it and fetch it again."
        )


class _Progress:
    """What pooch asks of a progress bar, shown as all progress of this package: a bar, or a line now and then."""

    total = 0  # bytes; pooch sets it

    def __init__(self, what: str) -> None:
        self._what = what
        self._steps: Iterator[int] | None = None

    def update(self, _: int) -> None:
        """Another block has come."""
        if self._steps is None:
            self._steps = track(itertools.count(), self._what, total=-(-self.total // _BLOCK) or None)
        next(self._steps)

    def reset(self) -> None:
        """Pooch starts over to show the end, which a bar that disappears need not."""
        self._steps = iter((0,))

    def close(self) -> None:
        """Leave nothing on the screen."""
