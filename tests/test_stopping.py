"""Signals that ask a command to stop: where it ends, its status, and whose signals are left alone."""

import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dhr_lightning.progress import exit_status
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
NAMES = [name for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    before = {name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in (*NAMES, "SIGCHLD")}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_ends_the_command_at_once_with_its_number(name: str, lines: Lines):
    number, after = getattr(signal, name), []

    def run() -> int:
        os.kill(os.getpid(), number)
        after.append("went on")
        return 0

    assert exit_status(run) == 128 + number
    assert after == []
    assert lines.messages[-1] == f"stopped by {name}; run the same command again to continue"
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_second_signal_does_not_disturb_the_way_out():
    cleaned = []

    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
        return 0

    assert exit_status(run) == 128 + signal.SIGTERM
    assert cleaned == [True]


def test_workers_that_end_by_the_same_signal_do_not_disturb_the_way_out(lines: Lines):
    def complain(*_: object) -> None:
        raise RuntimeError("DataLoader worker is killed by signal")

    signal.signal(signal.SIGCHLD, complain)  # as torch does

    def run() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGCHLD)
        return 0

    assert exit_status(run) == 128 + signal.SIGTERM
    assert lines.messages[-1].startswith("stopped by SIGTERM")


def test_signals_that_somebody_handles_or_ignores_are_left_alone():
    seen = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal.signal(signal.SIGUSR1, lambda *_: seen.append("mine"))

    def run() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)
        return 0

    assert exit_status(run) == 0
    assert seen == ["mine"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_child_process_ends_as_it_would_without():
    status: list[int] = []

    def run() -> int:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        status.append(os.waitpid(child, 0)[1])
        return 0

    assert exit_status(run) == 0
    assert os.WIFSIGNALED(status[0])
    assert os.WTERMSIG(status[0]) == signal.SIGTERM


def test_another_thread_installs_nothing():
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(exit_status(lambda: 0)))
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "/disk/x.png: No space left on device. Free some space"),
        (errno.EROFS, "/disk/x.png: Read-only file system. Give this user rights to it, or choose another folder (--w"),
        (errno.EACCES, "/disk/x.png: Permission denied. Give this user rights"),
        (errno.EMFILE, "/disk/x.png: Too many open files. Allow more open files (`ulimit -n 4096`)"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(number: int, text: str, lines: Lines):
    def run() -> int:
        raise OSError(number, os.strerror(number), "/disk/x.png")

    assert exit_status(run) == 2
    assert lines.messages[-1].startswith(f"error: {text}")


def test_an_error_of_our_own_is_not_taken_for_one_of_the_machine():
    def run() -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        exit_status(run)
