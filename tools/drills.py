"""Fault drills: what machines do to a run, done to a real one; does it end with the files of an undisturbed one?

`make drills` runs them all on the built-in data in the size of `debug.yaml` (about five minutes) and prints one line
for each. A drill that this machine does not allow, such as mounting a small disk, is said to be skipped.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dhr_lightning.artifacts.kinds import KINDS

RECIPE = ("run", "base", "--data", "microworld", "--overlay", "debug.yaml", "--", "--cam.trainer.max_epochs=6")
Results = dict[str, str]
EXTENSIONS = {kind.codec.extension for kind in KINDS.values()}


class SkippedError(Exception):
    """This machine does not allow the drill."""


class Place:
    """A working directory that shares its dataset with the others.

    Args:
        folder: of the artifacts and runs.
        data: of the dataset.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *extra: str, prefix: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """Begin the recipe in a process group of its own; its words come from one pipe."""
        words = [*RECIPE[: RECIPE.index("--")], "--root", str(self.data), *extra, *RECIPE[RECIPE.index("--") :]]
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "dhr_lightning", *words],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *extra: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
        """Status and words of the whole recipe."""
        process = self.start(*extra, prefix=prefix)
        return _finish(process)

    def command(self, *words: str) -> tuple[int, str]:
        """Status and words of another command."""
        done = subprocess.run(
            [sys.executable, "-m", "dhr_lightning", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def stop(self, word: str, number: int) -> tuple[int, str]:
        """Send a signal as soon as a line holds `word`."""
        process = self.start()
        said = ""
        for line in process.stdout or ():
            said += line
            if word in line:
                os.killpg(process.pid, number)
                break
        status, rest = _finish(process)
        return status, said + rest

    def results(self) -> Results:
        """Digest of every artifact file."""
        files = sorted(path for path in (self.folder / "artifacts").rglob("*") if path.suffix in EXTENSIONS)
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    def file(self, pattern: str) -> Path:
        """The first file of a pattern."""
        return sorted(self.folder.glob(pattern))[0]


def _finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return -1, f"{said}\nstill running after 300 s"
    return process.returncode, said


def _same(place: Place, expected: Results, *extra: str) -> str:
    """Run to the end and compare; empty if all files are those of the undisturbed run."""
    status, said = place.run(*extra)
    if status != 0:
        return f"then status {status}: {_last(said)}"
    found = place.results()
    unlike = [name for name in expected if found.get(name) != expected[name]]
    return f"then {len(unlike)} files differ, first {unlike[0]}" if unlike or set(found) != set(expected) else ""


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing said)"


def _expect(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def _signal(place: Place, expected: Results, *, word: str, number: int, status: int) -> str:
    found, said = place.stop(word, number)
    _expect(found == status, f"status {found} instead of {status}: {_last(said)}")
    _expect("Traceback" not in said, f"a traceback: {_last(said)}")
    _expect((problem := _same(place, expected)) == "", problem)
    return f"status {found}; continued to equal files"


def _disk_full(place: Place, expected: Results) -> str:
    with _mounted(place.folder, "size=400k"):
        status, said = place.run()
        _expect(status == 2 and "No space left" in said, f"status {status}: {_last(said)}")
        _expect("Traceback" not in said, f"a traceback: {_last(said)}")
        subprocess.run(["mount", "-o", "remount,size=200m", str(place.folder)], check=True)
        _expect((problem := _same(place, expected)) == "", problem)
    return f"status 2, one sentence ({_last(said)[:90]}...); with space it continued to equal files"


def _read_only(place: Place, expected: Results) -> str:
    with _mounted(place.folder, "size=1m,ro"):
        status, said = place.run()
    _expect(status == 2 and "Traceback" not in said, f"status {status}: {_last(said)}")
    return f"status 2, one sentence ({_last(said)[:120]})"


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise SkippedError(f"mounting a small disk is not allowed here ({made.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def _small_shared_memory(place: Place, expected: Results) -> str:
    prefix = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        raise SkippedError("a private /dev/shm is not allowed here")
    status, said = place.run("--set", "data.num_workers=2", prefix=prefix)
    _expect(status == 0, f"status {status}: {_last(said)}")
    _expect("too little for the batches of 2 processes" in said, "no word about shared memory")
    _expect(place.results() == expected, "other files")
    return "said, images loaded by this process alone, equal files"


def _cut_checkpoint(place: Place, expected: Results) -> str:
    place.stop("cam epoch 3", signal.SIGKILL)
    path = place.file("runs/*/cam/*/version_0/checkpoints/last.ckpt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _expect((problem := _same(place, expected)) == "", problem)
    return "put aside, continued from the epoch before to equal files"


def _changed_weights(place: Place, expected: Results) -> str:
    _expect((problem := _same(place, expected)) == "", problem)
    path = place.file("runs/*/cam/*/version_0/checkpoints/last.ckpt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, said = place.command("status", "--root", str(place.data), "--verify")
    _expect(status == 1 and "missing or damaged" in said, f"status --verify: {status}, {_last(said)}")
    shutil.rmtree(place.file("artifacts/*/cam/*/cam/train"))
    _expect((problem := _same(place, expected)) == "", problem)
    return "found by status --verify, fitted again to equal files"


def _damaged_artifacts(place: Place, expected: Results) -> str:
    _expect((problem := _same(place, expected)) == "", problem)
    mask, maps = place.file("artifacts/*/crf/*/mask/train/*.png"), place.file("artifacts/*/cam/*/cam/train/*.npz")
    for path in (mask, maps):
        path.write_bytes(path.read_bytes()[:100])
    status, said = place.command("status", "--root", str(place.data), "--verify")
    _expect(status == 1 and said.count("damaged (1 of") == 2, f"status --verify: {status}, {_last(said)}")
    mask.unlink(), maps.unlink()
    _expect((problem := _same(place, expected)) == "", problem)
    return "both found by status --verify; deleted ones made again, equal files"


def _two_processes(place: Place, expected: Results) -> str:
    both = [place.start(), place.start()]
    ends = [_finish(process) for process in both]
    _expect(0 in [status for status, _ in ends], f"neither ended well: {_last(ends[0][1])}; {_last(ends[1][1])}")
    _expect(all("Traceback" not in said for _, said in ends), "a traceback")
    _expect((problem := _same(place, expected)) == "", problem)
    loser = next((said for status, said in ends if status), "")
    return f"one ended, the other was told ({_last(loser)[:80]}...)" if loser else "both ended, equal files"


def _clock(place: Place, expected: Results) -> str:
    _expect((problem := _same(place, expected)) == "", problem)
    for path in (place.folder / "artifacts").rglob("*"):
        os.utime(path, (4_000_000_000, 4_000_000_000) if len(path.name) % 2 else (0, 0))
    status, said = place.run()
    _expect(status == 0 and "up to date" in said, f"status {status}: {_last(said)}")
    return "files from 1970 and 2096 are up to date"


def _not_a_number(place: Place, expected: Results) -> str:
    place.stop("cam epoch 3", signal.SIGKILL)
    path = place.file("runs/*/cam/*/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    name = next(key for key, value in checkpoint["state_dict"].items() if value.is_floating_point())
    tensor = checkpoint["state_dict"][name]
    tensor[(0,) * tensor.ndim] = float("nan")
    torch.save(checkpoint, path)
    status, said = place.run()
    _expect(status == 2 and name in said and "Traceback" not in said, f"status {status}: {_last(said)}")
    return f"status 2, names the tensor ({_last(said)[:80]}...)"


DRILLS: dict[str, Callable[[Place, Results], str]] = {
    "kill -9 while fitting": lambda place, expected: _signal(
        place, expected, word="cam epoch 3", number=signal.SIGKILL, status=-signal.SIGKILL
    ),
    "kill -9 while predicting": lambda place, expected: _signal(
        place, expected, word="cam: predicting", number=signal.SIGKILL, status=-signal.SIGKILL
    ),
    "SIGTERM while fitting": lambda place, expected: _signal(
        place, expected, word="cam epoch 3", number=signal.SIGTERM, status=128 + signal.SIGTERM
    ),
    "SIGTERM while predicting": lambda place, expected: _signal(
        place, expected, word="baseline: predicting", number=signal.SIGTERM, status=128 + signal.SIGTERM
    ),
    "SIGINT while fitting": lambda place, expected: _signal(
        place, expected, word="baseline epoch 1", number=signal.SIGINT, status=130
    ),
    "last.ckpt cut off": _cut_checkpoint,
    "finished weights changed": _changed_weights,
    "mask and CAM cut off": _damaged_artifacts,
    "two processes": _two_processes,
    "disk full": _disk_full,
    "read-only workspace": _read_only,
    "small /dev/shm": _small_shared_memory,
    "clock": _clock,
    "NaN in a checkpoint": _not_a_number,
}


def main() -> int:
    """Run all drills, or those whose names hold a word; returns 1 if any fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="drills whose name holds it")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started with it ignored
    chosen = {name: drill for name, drill in DRILLS.items() if parser.parse_args().only in name}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        data = Path(folder) / "data"
        undisturbed = Place(Path(folder) / "undisturbed", data)
        status, said = undisturbed.run()
        _expect(status == 0, f"the undisturbed run ended with status {status}: {_last(said)}")
        for number, (name, drill) in enumerate(chosen.items()):
            start = time.monotonic()
            try:
                outcome, word = drill(Place(Path(folder) / f"place_{number}", data), undisturbed.results()), "ok"
            except SkippedError as reason:
                outcome, word = str(reason), "skipped"
            except AssertionError as reason:
                outcome, word, failed = str(reason), "FAILED", failed + 1
            print(f"{word:<8}{name:<26}{outcome} [{time.monotonic() - start:.0f} s]", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
