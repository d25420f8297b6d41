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
from dhr_lightning.methods.features.fitted.task import FittedTask
from dhr_lightning.methods.masks.dhr.task import DHRTask
from tests.pipeline_workspace import ROUNDS, Lines, Workspace, interrupt_at

pytest_plugins = ["tests.pipeline_fixtures"]
FORCE = "--dhr.force_masks=true"
REPORT = Path("reports/microworld/dhr+uss=patches/report.html")


def manifest(workspace: Workspace, name: str, *overrides: str) -> Manifest:
    found = workspace.manifest(name, *overrides)
    assert found is not None
    return found


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """USS features that have nothing to do with the image, and DHR rounds that repeat the masks they start from."""

    predict = FittedTask.predict_step

    def random_features(task: FittedTask, batch: Any, *place: int) -> Any:
        found = predict(task, batch, *place)["features"]
        generator = torch.Generator().manual_seed(0)
        return {"features": [(torch.randn(64, *code.shape[1:], generator=generator),) for (code,) in found]}

    monkeypatch.setattr(DHRTask, "rebalanced", lambda task, inputs: SimpleNamespace(mask=inputs.mask))
    with monkeypatch.context() as patch:
        patch.setattr(FittedTask, "predict_step", random_features)
        yield patch


def interrupt(*arguments: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def started_from(workspace: Workspace, step: str, *overrides: str) -> bool:
    """Whether manifests and pixels of the last DHR run both come from the masks of a step."""
    masks = {workspace.place(f"{name}/train", *overrides)[0]: name for name in ("propagation", "mars")}
    for name in (*ROUNDS, "dhr/val"):
        read = {masks.get(one.rpartition("/")[0]) for one in manifest(workspace, name, *overrides).inputs} - {None}
        if read != {step}:
            return False
    return workspace.hashes(ROUNDS[0], *overrides) == workspace.hashes(f"{step}/train", *overrides)


def test_harmful_masks_are_left_out_until_they_are_made_well(workspace: Workspace, lines: Lines, noise: Any):
    assert manifest(workspace, "mars/train").info["gate"]["harmful"] is False
    other = "--uss.dimension=8"  # another variant of the features, which are noise
    assert workspace.run(other) == 0
    gate, source = manifest(workspace, "mars/train", other).info["gate"], workspace.place("propagation/train")[0]
    assert gate["harmful"] is True
    assert gate["source"] == source
    assert gate["lost_tags"] > gate["max_lost_tags"] == 0.5
    assert workspace.hashes("mars/train", other) != workspace.hashes("propagation/train")
    assert started_from(workspace, "propagation", other)
    mars = workspace.place("mars/train", other)[0]
    assert any(line.startswith(f"{mars}/train: harmful, removes") for line in lines.messages)
    (line,) = (line for line in lines.messages if line.startswith(f"dhr: starts from {source}, not from {mars}: "))
    assert "set model.init_args.force_masks: true" in line
    assert any(line.startswith("dhr: refinement: dense CRF by ") for line in lines.messages)
    assert any(line.startswith("dhr: mask round 0: changed_pixels 0.000, ") for line in lines.messages)
    notes = json.loads(REPORT.with_suffix(".json").read_text())["notes"]
    assert any("mars is harmful" in note and "later steps read propagation" in note for note in notes)
    assert "mars is harmful" in REPORT.read_text()

    lines.clear()
    assert workspace.run(other) == 0
    assert lines.messages == ["run dhr+uss=patches: up to date"]
    lines.clear()
    assert main(["status", *workspace.arguments(overrides=[other])]) == 0
    (row,) = (line for line in lines.messages if line.split()[0] == "mars")
    assert "harmful, removes the last pixel of" in row

    assert workspace.run(other, FORCE) == 0
    assert started_from(workspace, "mars", other, FORCE)

    noise.undo()  # the same addresses, with another verdict
    assert workspace.run(other, options=["--force", "uss", "mars"]) == 0
    assert manifest(workspace, "mars/train", other).info["gate"]["harmful"] is False
    assert started_from(workspace, "mars", other)


def test_a_chosen_threshold_is_said_and_recorded(workspace: Workspace, lines: Lines, ran: list[str]):
    assert workspace.run("--mars.threshold=auto", options=["--until", "mars"]) == 0
    info = manifest(workspace, "mars/train", "--mars.threshold=auto").info
    assert f"threshold {info['threshold']:.3f}: Otsu's of the similarities in 12 training images" in lines.messages
    assert ran == ["predict mars"]


def test_the_gate_counts_every_image_of_an_interrupted_prediction(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    before = manifest(workspace, "mars/train").info["gate"]
    workspace.store.forget(*workspace.place("mars/train"))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(6, address=workspace.place("mars/train")[0]))
        assert workspace.stage("stage3_dhr") == 130
    assert workspace.stage("stage3_dhr") == 0
    assert "mars: continuing, 5 images are already written" in lines.messages
    assert manifest(workspace, "mars/train").info["gate"] == before

    workspace.store.forget(*workspace.place("mars/train"))
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "seal", interrupt)
        assert workspace.stage("stage3_dhr") == 130
    assert workspace.stage("stage3_dhr") == 0
    assert "mars: continuing, 12 images are already written" in lines.messages
    assert manifest(workspace, "mars/train").info["gate"] == before
