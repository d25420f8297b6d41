"""Fetch official files on request: resumed after a break, compared with their published checksums."""

import hashlib
import os
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from dhr_lightning.errors import DataError
from dhr_lightning.progress import log, track

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


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
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            resumed = response.status == 206
            missing = int(response.headers.get("Content-Length") or 0)
            with part.open("ab" if resumed else "wb") as file:
                received = 0
                for block in track(_blocks(response), f"{path.name} (MB)", total=-(-missing // _BLOCK) or None):
                    file.write(block)
                    received += len(block)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{url} cannot be downloaded ({error}). Run the same command again to continue, or fetch the file by hand "
            f"and put it at {path}."
        ) from error
    if missing and received < missing:
        raise DataError(f"{url} broke off after {received} of {missing} bytes. Run the same command again to continue.")
    try:
        verify(part, checksum, name=path.name)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def verify(path: Path, checksum: str, *, name: str = "") -> None:
    """Compare a file with its published checksum; without one, say so.

    Raises:
        DataError: if they differ; names both.
    """
    name = name or path.name
    if not checksum:
        log.info("%s: no checksum is published, so only its size was compared", name)
        return
    kind, _, expected = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        for block in track(iter(lambda: file.read(_BLOCK), b""), f"checking {name}", total=_count(path)):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{name} has {kind} {digest.hexdigest()}, expected {expected}: the file is damaged or not official. "
            "Delete it and fetch it again."
        )


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block


def _count(path: Path) -> int:
    return -(-path.stat().st_size // _BLOCK)
