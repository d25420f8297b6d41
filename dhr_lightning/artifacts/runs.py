"""Folders of fits: `<workspace>/runs/<dataset>/<method>/<fit key>/version_k`, and which of them has finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json, write_json

STATE = "state.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def read_state(folder: Path) -> Mapping[str, Any]:
    """What is known of the newest run: `digest`, `run`, `fitted`, `seconds`; empty if there is none."""
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


def finished_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the newest run in a folder if its fit has finished, or `None`."""
    state = read_state(folder)
    return find_checkpoint(folder / str(state["run"])) if state.get("fitted") else None


def next_version(folder: Path) -> str:
    """First unused `version_k`."""
    numbers = [int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return f"version_{max(numbers, default=-1) + 1}"
