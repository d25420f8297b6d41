"""One writer per folder: a lock that the kernel releases when its process ends, however it ends."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from dhr_lightning.artifacts.manifest import timestamp
from dhr_lightning.errors import LockError


class FolderLock:
    """Exclusive use of a folder while the context is open.

    The file stays behind on purpose: removing it would let two processes hold locks on two files of one name.
    Worker processes forked meanwhile share the lock; leaving the context releases it for all of them.
    """

    def __init__(self, path: Path) -> None:
        """Name the lock file; its folder must exist."""
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        """Take the lock without waiting.

        Raises:
            LockError: if another process holds it, or the file system has no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._take(descriptor)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": timestamp()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockError(
                f"{self.path.parent} is being written by {_owner(descriptor)}. Wait until that process ends or stop "
                "it; the lock ends with it, so leave the lock file alone."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise LockError(
                f"The file system of {self.path.parent} has no file locks ({error}). Put the artifacts on another one."
            ) from error


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
