"""Unpack archives that others made: every member is checked before the first file is written."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from dhr_lightning.artifacts.files import TEMPORARY_PREFIX
from dhr_lightning.errors import DataError
from dhr_lightning.progress import track


class _Member(NamedTuple):
    name: str
    size: int
    handle: tarfile.TarInfo | zipfile.ZipInfo
    is_file: bool
    is_folder: bool


def unpack(archive: Path, into: Path, *, prefix: str = "") -> int:
    """Unpack the files of a tar or zip archive; files that are there at full size are kept, so it can be repeated.

    Args:
        archive: `.zip`, `.tar`, `.tgz` or `.tar.gz`.
        into: folder that receives the files.
        prefix: leading folders of members that are dropped, e.g. `VOCdevkit/VOC2012`; others are passed over.

    Returns:
        How many files were written.

    Raises:
        DataError: if the archive is broken, or a member would land outside of `into` or is no file or folder (a link, a
            device). Nothing is written then.
    """
    try:
        with _opened(archive) as box:
            members = list(_members(box))
            targets = [(member, _target(member, archive, into, prefix)) for member in members]
            todo = [(m, t) for m, t in targets if t and m.is_file and not (t.is_file() and t.stat().st_size == m.size)]
            for member, target in track(todo, f"unpacking {archive.name}"):
                _write(box, member, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"Archive {archive} cannot be read ({error}). Delete it and fetch it again.") from error
    return len(todo)


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    else:
        with tarfile.open(archive) as tarred:
            yield tarred


def _members(box: tarfile.TarFile | zipfile.ZipFile) -> Iterator[_Member]:
    if isinstance(box, tarfile.TarFile):
        for info in box:
            yield _Member(info.name, info.size, info, info.isreg(), info.isdir())
        return
    for entry in box.infolist():
        kind = entry.external_attr >> 28  # file type of the Unix mode: 8 file, 4 folder, 0 unset
        yield _Member(entry.filename, entry.file_size, entry, not entry.is_dir() and kind in (0, 8), entry.is_dir())


def _target(member: _Member, archive: Path, into: Path, prefix: str) -> Path | None:
    """Where a member goes, or `None` if it lies beside the prefix."""
    path = PurePosixPath(member.name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name
    if unsafe or "\0" in member.name:
        raise DataError(
            f"Archive {archive} holds {member.name!r}, which would be written outside of {into}. "
            "Nothing was unpacked; do not trust this file."
        )
    if not member.is_file and not member.is_folder:
        raise DataError(
            f"Archive {archive} holds {member.name!r}, which is a link or a device. "
            "Nothing was unpacked; do not trust this file."
        )
    leading = PurePosixPath(prefix).parts
    if path.parts[: len(leading)] != leading or len(path.parts) <= len(leading):
        return None
    target = into.joinpath(*path.parts[len(leading) :])
    if not target.resolve().is_relative_to(into.resolve()):
        raise DataError(f"{target} lies outside of {into} because a folder there is a link. Nothing was unpacked.")
    return target


def _write(box: tarfile.TarFile | zipfile.ZipFile, member: _Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}"
    try:
        with _stream(box, member) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _stream(box: tarfile.TarFile | zipfile.ZipFile, member: _Member) -> IO[bytes]:
    if isinstance(member.handle, zipfile.ZipInfo):
        assert isinstance(box, zipfile.ZipFile)
        return box.open(member.handle)
    assert isinstance(box, tarfile.TarFile)
    stream = box.extractfile(member.handle)
    if stream is None:
        raise DataError(f"Archive member {member.name!r} holds no data. Fetch the archive again.")
    return stream
