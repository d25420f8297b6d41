"""The gate of MARS end to end: features that reject everything, DHR from the source, good features again."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.features.task import USSTask
from tests.pipeline_workspace import ROUNDS, Lines, Workspace, interrupt_at

pytest_plugins = ["tests.pipeline_fixtures"]
FORCE = "--dhr.model.init_args.force_masks=true"


def manifest(workspace: Workspace, kind: str, split: str = "train") -> Manifest:
    found = workspace.store.manifest(kind, split)
    assert found is not None
    return found


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """USS features that have nothing to do with the image, and DHR rounds that repeat the masks they start from."""

    predict = USSTask.predict_step

    def random_features(task: USSTask, batch: Any, *place: int) -> Any:
        found = predict(task, batch, *place)["uss"]
        generator = torch.Generator().manual_seed(0)
        return {"uss": [(torch.randn(64, *code.shape[1:], generator=generator),) for (code,) in found]}

    monkeypatch.setattr(DHRTask, "pseudo_masks", lambda task, batch: SimpleNamespace(mask=batch["mask"]))
    with monkeypatch.context() as patch:
        patch.setattr(USSTask, "predict_step", random_features)
        yield patch


def interrupt(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def started_from(workspace: Workspace, kind: str) -> bool:
    """Whether plan and pixels of the last DHR run both come from `kind`."""
    inputs = [set(manifest(workspace, name).inputs) for name in ROUNDS] + [
        set(manifest(workspace, "prediction", "val").inputs)
    ]
    masks = {name for one in inputs for name in one if name.endswith("_mask/train")}
    return masks == {f"{kind}/train"} and workspace.hashes(ROUNDS[0]) == workspace.hashes(kind)


def test_harmful_masks_are_left_out_until_they_are_made_well(workspace: Workspace, lines: Lines, noise: Any):
    assert manifest(workspace, "mars_mask").info["gate"]["harmful"] is False
    assert workspace.stage("stage2_uss", "--model.init_args.dimension=8") == 0
    assert workspace.stage("stage3_dhr") == 0
    gate = manifest(workspace, "mars_mask").info["gate"]
    assert gate["harmful"] is True
    assert gate["source"] == "base_mask"
    assert gate["lost_tags"] > gate["max_lost_tags"] == 0.5
    assert workspace.hashes("mars_mask") != workspace.hashes("base_mask")
    assert started_from(workspace, "base_mask")
    assert any(line.startswith("mars_mask/train: harmful, removes") for line in lines.messages)
    (line,) = (line for line in lines.messages if line.startswith("dhr: starts from base_mask, not from mars_mask: "))
    assert "set model.init_args.force_masks: true" in line
    assert any(line.startswith("dhr: refinement: dense CRF by ") for line in lines.messages)
    assert any(line.startswith("dhr_mask round 0: changed_pixels 0.000, ") for line in lines.messages)
    notes = json.loads(Path("reports/microworld/report.json").read_text())["notes"]
    assert any("mars_mask/train is harmful" in note and "later steps read base_mask" in note for note in notes)
    assert "mars_mask/train is harmful" in Path("reports/microworld/report.html").read_text()

    lines.clear()
    assert workspace.stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]
    lines.clear()
    assert main(["status"]) == 0
    (row,) = (line for line in lines.messages if line.startswith("mars_mask/train"))
    assert "harmful, removes the last pixel of" in row

    assert workspace.stage("stage3_dhr", FORCE) == 0
    assert started_from(workspace, "mars_mask")

    noise.undo()
    lines.clear()
    assert workspace.stage("stage2_uss") == 0
    assert workspace.stage("stage3_dhr", "--mars.model.init_args.threshold=auto") == 0
    info = manifest(workspace, "mars_mask").info
    assert info["gate"]["harmful"] is False
    assert f"threshold {info['threshold']:.3f}: Otsu's of the similarities in 12 training images" in lines.messages
    assert started_from(workspace, "mars_mask")


def test_the_gate_counts_every_image_of_an_interrupted_prediction(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    before = manifest(workspace, "mars_mask").info["gate"]
    workspace.store.forget("mars_mask", "train")
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(6, kind="mars_mask"))
        assert workspace.stage("stage3_dhr") == 130
    assert workspace.stage("stage3_dhr") == 0
    assert "mars: continuing, 5 images are already written" in lines.messages
    assert manifest(workspace, "mars_mask").info["gate"] == before

    workspace.store.forget("mars_mask", "train")
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "seal", interrupt)
        assert workspace.stage("stage3_dhr") == 130
    assert workspace.stage("stage3_dhr") == 0
    assert "mars: continuing, 12 images are already written" in lines.messages
    assert manifest(workspace, "mars_mask").info["gate"] == before
