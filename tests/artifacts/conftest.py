import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import dhr_lightning
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore

IDS = ("2007_000032", "2007_000039", "cats/0001")


@pytest.fixture(autouse=True)
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the order of syncs and renames; the syncs are left out, because no test cuts the power."""
    events: list[str] = []
    replace = os.replace

    def rename(old: Path, new: Path) -> None:
        events.append(f"replace {Path(new).name}")
        replace(old, new)

    def sync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")

    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(os, "fsync", sync)
    return events


@pytest.fixture
def palette() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", "tiny")


@pytest.fixture
def ids() -> tuple[str, ...]:
    return IDS


@pytest.fixture
def describe() -> Callable[..., Manifest]:
    def build(address: str = "mask", *, ids: tuple[str, ...] = IDS, tau: float = 0.8, **settings: object) -> Manifest:
        arguments: dict[str, object] = {"settings": {"dhr": {"tau": tau, "epsilon": 0.1}}, **settings}
        return Manifest.create(address, "tiny", "train", ids=ids, **arguments)

    return build


@pytest.fixture
def fill(store: ArtifactStore, palette: NDArray[np.uint8]) -> Callable[..., Manifest]:
    def run(identity: Manifest, *, ids: tuple[str, ...] = IDS, value: int = 1) -> Manifest:
        with store.open_writer(identity.address, identity.split, identity=identity, ids=ids, palette=palette) as writer:
            for image_id in ids:
                writer.write(image_id, np.full((4, 5), value, np.uint8))
            return writer.seal(seconds=1.5)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Run a Python script in its own process; whatever still lives at the end of the test is killed."""
    children: list[subprocess.Popen[str]] = []
    root = str(Path(dhr_lightning.__file__).parents[1])

    def run(script: str, *arguments: object) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()
