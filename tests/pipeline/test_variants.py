"""What a change makes again, and what lies beside it untouched."""

import shutil

import pytest

from dhr_lightning.artifacts.writer import ArtifactWriter
from tests.pipeline_workspace import Lines, Workspace, interrupt_at

pytest_plugins = ["tests.pipeline_fixtures"]
BEHIND_MASKS = [f"{what} {step}" for step in ("baseline", "mars", "dhr") for what in ("fit", "predict")]
PAMR = ["--swap", "propagation=pamr"]


def content(workspace: Workspace) -> dict[str, dict[str, str]]:
    return {name: workspace.hashes(name) for name in workspace.places()}


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("--propagation.workers=1", []),
        ("--dhr.scales=[1.0, 0.5]", ["predict dhr"]),
        ("--dhr.test_crf={iterations: 1}", ["predict dhr"]),
        ("--baseline.test_crf={iterations: 1}", ["predict baseline"]),
        ("--mars.workers=1", []),
        ("--uss.scales=[0.5]", ["predict uss", "fit mars", "predict mars", "fit dhr", "predict dhr"]),
        ("--mars.rejected=ignore", ["predict mars", "fit dhr", "predict dhr"]),
        ("--propagation.crf.iterations=2", ["predict propagation", *BEHIND_MASKS]),
        ("--baseline.lr=0.01", ["fit baseline", "predict baseline"]),
        ("--data.num_workers=1", []),
    ],
)  # fmt: skip
def test_a_change_runs_what_depends_on_it_and_nothing_else(
    workspace: Workspace, ran: list[str], monkeypatch: pytest.MonkeyPatch, override: str, again: list[str]
):
    planned: list[str] = []
    monkeypatch.setattr("dhr_lightning.pipeline.runner.check_inputs", lambda *arguments, **options: None)

    def note(identity, *, force: bool = False, refit: bool = False, predicts: bool = True) -> None:
        state = identity.run_folder / "state.json"
        if identity.spec.fits and (force or refit or not state.is_file()):
            planned.append(f"fit {identity.step}")
        planned.append(f"predict {identity.step}")

    monkeypatch.setattr("dhr_lightning.pipeline.runner.run_step", note)
    monkeypatch.setattr("dhr_lightning.pipeline.command.write_reports", lambda *arguments, **options: None)
    assert workspace.run(override) == 0
    assert planned == again
    assert ran == []


def test_another_propagation_fits_neither_cam_nor_uss_and_the_first_lies_untouched(
    workspace: Workspace, ran: list[str], lines: Lines
):
    before = content(workspace)
    assert workspace.run(options=PAMR) == 0
    fits = [call for call in ran if call.startswith("fit")]
    assert fits == ["fit baseline", "fit mars", "fit dhr"]
    assert "predict cam" not in ran
    assert "predict uss" not in ran
    assert content(workspace) == before

    ran.clear()
    lines.clear()
    assert workspace.run() == 0
    assert lines.messages[0] == "run dhr+uss=patches: up to date"
    lines.clear()
    assert workspace.run(options=PAMR) == 0
    assert lines.messages == ["run dhr+uss=patches+propagation=pamr: up to date"]
    assert ran == []


def test_a_prediction_setting_predicts_from_the_weights_there_are(workspace: Workspace, ran: list[str], lines: Lines):
    before, weights = content(workspace), workspace.weights("dhr")
    assert workspace.run("--dhr.scales=[1.0, 0.5]") == 0
    assert ran == ["predict dhr"]
    assert content(workspace) == before
    assert workspace.hashes("dhr/val", "--dhr.scales=[1.0, 0.5]") != before["dhr/val"]
    assert workspace.run_folder("dhr", "--dhr.scales=[1.0, 0.5]") == workspace.run_folder("dhr")
    assert set(weights) == set(workspace.weights("dhr"))


def test_a_crash_in_the_middle_leaves_other_variants_untouched(
    workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    before, other = content(workspace), "--propagation.background=0.4"
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "write", interrupt_at(5))
        assert workspace.run(other) == 130
    assert workspace.status("propagation/train", other).state == "partial"
    assert content(workspace) == before
    lines.clear()
    assert workspace.run() == 0
    assert lines.messages == ["run dhr+uss=patches: up to date"]


def test_recipes_share_the_steps_that_are_equal(workspace: Workspace, ran: list[str], lines: Lines):
    shared = workspace.plan()
    assert workspace.run(options=["--drop", "mars"]) == 0
    assert ran == ["fit dhr", "predict dhr"]
    dropped = workspace.plan(options=["--drop", "mars"])
    assert dropped.recipe.name == "dhr+uss=patches-mars"
    for step in ("cam", "propagation", "uss", "baseline"):
        assert dropped[step].outputs() == shared[step].outputs()
    assert dropped["dhr"].outputs() != shared["dhr"].outputs()


def test_changed_images_make_artifacts_stale_where_they_lie(workspace: Workspace):
    places = workspace.places()
    copy = workspace.folder.parent / "data"
    shutil.copytree(workspace.data, copy)
    next((copy / "JPEGImages").glob("train_0001.*")).write_bytes(b"")
    workspace.data = copy
    assert workspace.places() == places  # images are in no key
    status = workspace.status("cam/train")
    assert status.state == "stale"
    assert "input data/train" in status.reason
