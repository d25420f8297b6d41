"""Measure the fast parts of the package side by side with what they replace, and save one table of ratios.

    python benchmarks/ratios.py --quick --output bench/ratios.md

The table is in the given Markdown file and, for programs, in a JSON file beside it; both grow with every row. A machine
that does other work meanwhile changes both sides of a ratio alike, because they are measured in turns.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from ratio_base import Options, Ratio

# Processes of the dense CRF import this file again, so torch must not be imported before `main`.
log = logging.getLogger("dhr_lightning")
BENCHMARKS = (
    "crf",
    "transport",
    "mask_step",
    "walk",
    "methods",
    "batches",
    "features",
    "refresh",
    "guards",
    "training",
    "gpu",
)


def main() -> int:
    """Measure every row; returns the exit status."""
    from dhr_lightning.progress import configure_logging, exit_status

    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from dhr_lightning.progress import track

    measured: list[Ratio] = []
    path = options.output.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    rows = _rows(options.only, Options(repeats=3 if options.quick else 7, photos=options.photos))
    for row in track(rows, "ratios"):
        log.info("%s: %s", row.name, " | ".join(_cells(row)[1:]))
        measured.append(row)
        _save(path, measured, machine)
    log.info("\n%s\nResults: %s", _table(measured), path)


def _rows(names: Sequence[str], options: Options) -> Iterator[Ratio]:
    """Rows of the benchmarks, all of which are imported before the first one starts."""
    for module in [import_module(f"ratio_{name}") for name in names]:
        yield from module.rows(options)


def _save(path: Path, measured: Sequence[Ratio], machine: dict[str, Any]) -> None:
    from dhr_lightning.artifacts.files import write_bytes, write_json

    content = [{**asdict(row), "reached": row.reached} for row in measured]
    write_json(path.with_suffix(".json"), {"schema": 1, "command": sys.argv, "machine": machine, "rows": content})
    described = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = ["# Ratios", "", f"`python {shlex.join(sys.argv)}`", "", f"Machine: {described}.", "", _table(measured)]
    write_bytes(path, "\n".join(lines).encode())


def _machine() -> dict[str, Any]:
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """Name of the processor; Linux tells it only in a file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _table(measured: Sequence[Ratio]) -> str:
    """The rows in Markdown."""
    lines = [("what", "measured", "goal", "reached", "detail"), *(_cells(row) for row in measured)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _cells(row: Ratio) -> tuple[str, ...]:
    goal = "" if row.goal is None else f"{'<=' if row.at_most else '>='} {_figure(row.goal, row.unit)}"
    reached = {None: "", True: "yes", False: "no"}[row.reached]
    texts = (row.name, _figure(row.value, row.unit), goal, reached, row.detail)
    return tuple(text.replace("|", "\\|") for text in texts)


def _figure(value: float, unit: str) -> str:
    """A value with at least three digits, all of those before the point, and its unit."""
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if unit == "%":
        text = f"{value:.6g}"  # 99.99 % is not 100 %
    return f"{text} {unit}".rstrip()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="medians of 3 runs instead of 7")
    parser.add_argument("--output", type=Path, default=Path("bench/ratios.md"), help="Markdown file of the table")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="JPEG photos to measure on; default: drawn images")
    parser.add_argument("--only", nargs="+", default=BENCHMARKS, choices=BENCHMARKS, help="some of the benchmarks")
    options = parser.parse_args()
    if options.photos and not options.photos.is_dir():
        parser.error(f"--photos {options.photos} is not a folder. Name one with JPEG photos, or leave the option out.")
    if options.output.suffix != ".md":
        parser.error(f"--output {options.output} must end in .md; the JSON file beside it gets the same name.")
    return options


if __name__ == "__main__":
    sys.exit(main())
