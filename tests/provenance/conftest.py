from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.runs import write_state
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.provenance.identity import StepIdentity

Make = Callable[..., StepIdentity]
INPUTS = {
    "cam": {},
    "crf": {"cam": "cam/1a2b/cam"},
    "patches": {},
    "wss": {"masks": "crf/1a2b/mask", "init": "cam/3c4d"},
    "mars": {"masks": "crf/1a2b/mask", "features": "patches/1a2b/features"},
    "dhr": {"masks": "mars/1a2b/mask", "features": "patches/1a2b/features", "init": "cam/3c4d"},
}


@pytest.fixture
def make(voc_copy: Path, tmp_path: Path) -> Make:
    """The identity of a step; `changes` are settings by dotted name, such as `{"trainer.max_epochs": 4}`."""

    def build(method: str, changes: Mapping[str, Any] | None = None, **inputs: str | None) -> StepIdentity:
        config: dict[str, Any] = {
            "model": {"class_path": f"some.{method}", "init_args": {"lr": 0.1}},
            "data": {
                "dataset": "voc", "root": str(voc_copy), "workspace": str(tmp_path), "method": method, "num_workers": 2,
                "inputs": {**INPUTS[method], **inputs},
            },
            "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "PseudoMaskRefresh"}]},
            "seed_everything": 0,
        }  # fmt: skip
        for name, value in (changes or {}).items():
            *parents, leaf = name.split(".")
            section = config
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = value
        return StepIdentity(config)

    return build


@pytest.fixture
def seal(tmp_path: Path) -> Callable[..., Manifest]:
    """Put the manifest of a finished artifact, of training images unless said otherwise, without files."""

    def put(address: str, split: str = "train", **settings: Any) -> Manifest:
        folder = ArtifactStore(tmp_path / "artifacts", "voc").folder(address, split)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = Manifest.create(address, "voc", split, ids=["a"], settings=settings)
        manifest.save(folder / "manifest.json")
        return manifest

    return put


@pytest.fixture
def fitted(tmp_path: Path) -> Callable[..., Path]:
    """Put the weights of a finished fit."""

    def put(run: str, content: bytes, version: str = "version_0") -> Path:
        folder = tmp_path / "runs" / "voc" / run
        path = folder / version / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        write_state(folder, {"run": version, "fitted": True})
        return path

    return put
