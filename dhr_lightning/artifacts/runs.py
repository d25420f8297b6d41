"""Folders of fits: `<workspace>/runs/<dataset>/<method>/<fit key>/version_k`, and which of them has finished."""

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.manifest import digest_file

STATE = "state.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
log = logging.getLogger("dhr_lightning")


def read_state(folder: Path) -> Mapping[str, Any]:
    """What is known of the newest run: `digest`, `run`, `fitted`, `seconds`, `weights`; empty if there is none."""
    path = folder / STATE
    return read_json(path) if path.is_file() else {}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Keep the state of the newest run."""
    write_json(folder / STATE, dict(state))


def find_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or `None`."""
    for name in (LAST, PREVIOUS):
        if (run / "checkpoints" / name).is_file():
            return run / "checkpoints" / name
    return None


def usable_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or `None`; a damaged one is said and renamed `NAME.damaged`."""
    for name in (LAST, PREVIOUS):
        path = run / "checkpoints" / name
        if path.is_file() and _is_whole(path):
            return path
        if path.is_file():
            path.replace(path.with_name(f"{name}.damaged"))  # else it would become the previous one of the next epoch
            log.warning("%s is damaged (cut off or changed) and put aside as %s.damaged", path, name)
    return None


def _is_whole(path: Path) -> bool:
    """Whether every part of a file that torch wrote has its checksum; a file that is cut off has no table of parts."""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except (zipfile.BadZipFile, EOFError, zlib.error):
        return False


def finished_checkpoint(folder: Path) -> Path | None:
    """The weights that the finished fit of the newest run left; `None` if it has not finished or they have changed."""
    state = read_state(folder)
    if not state.get("fitted"):
        return None
    path = folder / str(state["run"]) / "checkpoints" / LAST  # never the one before: those are other weights
    return path if path.is_file() and state.get("weights") in (None, digest_file(path)) else None


def next_version(folder: Path) -> str:
    """First unused `version_k`."""
    numbers = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return f"version_{max(numbers, default=-1) + 1}"
