import io
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dhr_lightning import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def fresh_log() -> Iterator[logging.Logger]:
    """Our logger without handlers; what the test did to it is undone."""
    state = progress.log.handlers[:], progress.log.level, progress.log.propagate
    progress.log.handlers.clear()
    progress.log.propagate = True
    yield progress.log
    progress.log.handlers[:], progress.log.level, progress.log.propagate = state


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that advances by six seconds with every look."""
    now = [0.0]

    def look() -> float:
        now[0] += 6.0
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", look)
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7830, "2 h 10 min"),
    ],
)
def test_durations_read_like_durations(seconds: float, text: str):
    assert progress.duration(seconds) == text


def test_a_description_says_what_is_left():
    assert progress.describe(30, 120, 12) == "30/120 (25 %), 12 s, 36 s left"
    assert progress.describe(30, None, 12) == "30, 12 s"
    assert progress.describe(0, 120, 0) == "0/120 (0 %), 0 s, 0 s left"


def test_items_pass_through_in_order_and_are_taken_one_at_a_time():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            taken.append(number)
            yield number

    tracked = progress.track(items(), "items")
    assert next(tracked) == 0
    assert taken == [0]
    assert list(tracked) == [1, 2, 3, 4]


def test_lines_come_every_ten_seconds_without_a_terminal(
    clock: list[float], fresh_log: logging.Logger, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "dhr_lightning"):
        assert list(progress.track(range(5), "checking")) == list(range(5))
    assert caplog.messages == ["checking: 2/5 (40 %), 12 s, 18 s left", "checking: 4/5 (80 %), 24 s, 6 s left"]


def test_a_generator_with_a_given_total_has_a_remaining_time(
    clock: list[float], fresh_log: logging.Logger, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "dhr_lightning"):
        list(progress.track(iter(range(3)), "checking", total=3))
        list(progress.track(iter(range(3)), "checking"))
    assert caplog.messages == ["checking: 2/3 (66 %), 12 s, 6 s left", "checking: 2, 12 s"]


def test_a_terminal_gets_a_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clock: list[float]
):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with caplog.at_level(logging.INFO, "dhr_lightning"):
        assert list(progress.track(range(3), "checking")) == [0, 1, 2]
    assert "checking" in screen.getvalue()
    assert not caplog.messages


def test_messages_go_to_standard_output_and_errors_to_standard_error(
    fresh_log: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    progress.configure_logging()
    progress.configure_logging()
    fresh_log.debug("hidden")
    fresh_log.info("done")
    fresh_log.warning("careful")
    fresh_log.error("broken")
    assert capsys.readouterr() == ("done\ncareful\n", "broken\n")


def test_a_reader_that_leaves_ends_no_work_and_says_nothing(tmp_path: Path):
    """As `status | head -1`: the pipe is closed long before the last line."""
    script = (
        "import logging, pathlib\n"
        "from dhr_lightning.progress import configure_logging\n"
        "configure_logging()\n"
        "for number in range(20000):\n    logging.getLogger('dhr_lightning').info('line %d', number)\n"
        f"pathlib.Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("line 0\n", "")
    assert (tmp_path / "done").exists()
