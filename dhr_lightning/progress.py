"""Progress with remaining time: a bar on a terminal, plain lines elsewhere."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TextIO, TypeVar

from tqdm import tqdm

from dhr_lightning.errors import DHRError, machine_error, set_run_command

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # Python 3.10 has no types for it

Item = TypeVar("Item")
log = logging.getLogger("dhr_lightning")
_SECONDS_BETWEEN_LINES = 10.0
STOPPING = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # of schedulers, containers and terminals


def track(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """Yield the items and say how far it is and how long it will take.

    Args:
        items: anything to iterate over.
        what: one or two words shown before the count.
        total: number of items; default: `len(items)` where there is one.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=count, leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES:
            log.info("%s: %s", what, describe(done, count, now - start))
            last = now


def describe(done: int, total: int | None, seconds: float) -> str:
    """`30/120 (25 %), 12 s, 36 s left`."""
    if not total:
        return f"{done}, {duration(seconds)}"
    left = seconds / max(done, 1) * (total - done)
    return f"{done}/{total} ({100 * done // total} %), {duration(seconds)}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command and turn what a user can repair into one line and a status.

    Returns:
        What `run` returns (0 for `None`), 2 after a `DHRError` or a refusal of the machine (full disk, no rights), 130
        after an interrupt, 128 + its number after another signal that asks to stop.
    """
    try:
        set_run_command()
        with stopped_by_signals():
            return run() or 0
    except DHRError as error:
        log.error("error: %s", error)
        return 2
    except OSError as error:
        sentence = machine_error(error)
        if sentence is None:
            raise
        log.error("error: %s", sentence)
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again to continue")
        return 130
    except StoppedError as stop:
        log.error("stopped by %s; run the same command again to continue", signal.Signals(stop.number).name)
        return 128 + stop.number


class StoppedError(BaseException):
    """A signal asked this process to stop: raised where it is, so that nothing goes on as if the work were done.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `StoppedError` at the signals by which schedulers, containers and closed terminals end a program.

    Lightning only notes SIGTERM: a fit ended with status 0 and nothing made, and a prediction went on. A signal that
    somebody handles or ignores already, as `nohup` does, is left alone.
    """
    found = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    found = [number for number in found if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        found = []
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that inherited this: it ends as it would without
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for one in found:  # once is enough; the way out must not be disturbed
            signal.signal(one, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):  # workers got the signal too: torch would raise an error at their end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise StoppedError(number)

    for number in found:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in found:
            signal.signal(number, signal.SIG_DFL)


class MessageHandler(_StreamHandler):
    """Writes messages; when the reader of a pipe has gone (`status | head`), the work goes on without a word."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the broken pipe; all other errors are shown as ever."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # the interpreter writes what is left at its end
        os.close(nowhere)


def configure_logging() -> None:
    """Our messages go to standard output as plain lines, errors to standard error."""
    if log.handlers:
        return
    lines, errors = MessageHandler(sys.stdout), MessageHandler(sys.stderr)
    lines.addFilter(lambda record: record.levelno < logging.ERROR)
    errors.setLevel(logging.ERROR)
    for handler in (lines, errors):
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def human(size: float) -> str:
    """Bytes as `512 B`, `3.4 MB` or `12.0 GB`, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
