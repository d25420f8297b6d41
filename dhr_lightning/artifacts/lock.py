"""One writer per folder: a lock that the system releases when its process ends, however it ends."""

import errno
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, Timeout

from dhr_lightning.artifacts.manifest import timestamp
from dhr_lightning.errors import LockError


class FolderLock:
    """Exclusive use of a folder while the context is open.

    The file stays behind on purpose: removing it would let two processes hold locks on two files of one name.
    A process forked meanwhile has no part in the lock, so it can neither release nor keep it.
    """

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        """Name the lock file; its folder must exist.

        Args:
            path: the lock file.
            patience: seconds to wait for another process.
        """
        self.path, self.patience = path, patience
        self._held: BaseFileLock | None = None

    def __enter__(self) -> "FolderLock":
        """Take the lock, without waiting unless there is patience.

        Raises:
            LockError: if another process holds it, or the file system has no locks.
        """
        lock = native_lock(self.path, wait=False)
        try:
            lock.acquire(timeout=self.patience, blocking=self.patience > 0)
        except Timeout as error:
            raise LockError(
                f"{self.path.parent} is being written by {_owner(self.path)}. Wait until that process ends or stop "
                "it; the lock ends with it, so leave the lock file alone."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise LockError(
                f"The file system of {self.path.parent} has no file locks ({error}). Put the artifacts on another one."
            ) from error
        self._held = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        if self._held is not None:
            self._held.release()
            self._held = None


def native_lock(path: Path, *, wait: bool) -> BaseFileLock:
    """A lock of the operating system on a file, which says inside who holds it.

    Args:
        path: the lock file, made where there is none and left behind.
        wait: whether `acquire` waits for another holder; otherwise it raises `filelock.Timeout`.
    """
    return FileLock(
        path,
        blocking=wait,
        thread_local=False,  # the thread that ends a run need not be the one that began it
        fallback_to_soft=False,  # a marker file instead of a lock would outlive a killed process
        preserve_lock_file=True,
        on_acquired=_sign,
    )


def _sign(descriptor: int) -> None:
    """Write who holds the lock, after the first byte: Windows lets no other process read the byte that is locked."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": timestamp()}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f" {json.dumps(owner)}".encode())


def _owner(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(1)
            owner = json.loads(file.read(4096))
        return f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
