"""One writer per folder: who holds the lock, what ends it, and what another process is told."""

import errno
import fcntl
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.errors import LockError

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from dhr_lightning.artifacts.lock import FolderLock
folder, how = Path(sys.argv[1]), sys.argv[2]
with FolderLock(folder / ".lock"):
    child = 0
    if how == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
    elif how == "spawn":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False).pid
    print(os.getpid(), child, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork", "spawn"])
def test_a_killed_process_leaves_no_lock_behind_even_if_its_children_live_on(tmp_path: Path, start, how: str):
    holder = start(HOLD, tmp_path, how)
    process, child = (int(word) for word in holder.stdout.readline().split())
    try:
        with pytest.raises(LockError, match=f"being written by process {process} on host {socket.gethostname()} since"):
            FolderLock(tmp_path / ".lock").__enter__()
        holder.kill()
        holder.wait(timeout=10)
        if child:
            os.kill(child, 0)  # still there
        with FolderLock(tmp_path / ".lock"):
            pass
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


LEAVE_IN_CHILD = """
import os, sys
from pathlib import Path
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.errors import LockError
path = Path(sys.argv[1]) / ".lock"
with FolderLock(path) as lock:
    if os.fork() == 0:
        lock.__exit__(None, None, None)
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        try:
            FolderLock(path).__enter__()
        except LockError as error:
            os._exit(7 if f"process {os.getppid()} on host" in str(error) else 8)
        os._exit(9)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
with FolderLock(path):
    print("free", flush=True)
"""


def test_a_forked_child_can_neither_release_the_lock_of_its_parent_nor_take_it(tmp_path: Path, start):
    assert start(LEAVE_IN_CHILD, tmp_path).communicate(timeout=30)[0].split() == ["7", "free"]


def test_the_owner_is_read_without_the_locked_byte_which_windows_gives_to_nobody_else(tmp_path: Path):
    path = tmp_path / ".lock"
    with FolderLock(path):
        with path.open("r+b") as file:
            file.write(b"\xff")
        with pytest.raises(LockError, match=f"process {os.getpid()} on host"):
            FolderLock(path).__enter__()


def test_the_lock_file_can_be_read_and_written_by_all_that_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        with FolderLock(tmp_path / ".lock"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o644


def test_the_lock_file_says_who_holds_it_and_nothing_of_an_earlier_holder(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("x" * 3000)
    with FolderLock(path):
        owner = json.loads(path.read_text())
        assert (owner["pid"], owner["host"], len(owner["since"])) == (os.getpid(), socket.gethostname(), 24)
        with pytest.raises(LockError, match=rf"{tmp_path} is being written by process .* since {owner['since'][:10]}"):
            FolderLock(path).__enter__()
        path.write_text("not of this program")
        with pytest.raises(LockError, match="being written by another process"):
            FolderLock(path).__enter__()


def test_leaving_a_lock_twice_or_without_having_entered_does_nothing(tmp_path):
    lock = FolderLock(tmp_path / ".lock")
    lock.__exit__(None, None, None)
    with lock:
        pass
    with FolderLock(tmp_path / ".lock"):
        lock.__exit__(None, None, None)
        with pytest.raises(LockError):
            lock.__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_to_have_none(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LockError, match=rf"The file system of {tmp_path} has no file locks \(.*{os.strerror(code)}"):
        FolderLock(tmp_path / ".lock").__enter__()


def test_another_failure_of_a_lock_is_passed_on_and_leaks_no_descriptor(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="Input/output"):
        FolderLock(tmp_path / ".lock").__enter__()
    assert set(os.listdir("/dev/fd")) == before
