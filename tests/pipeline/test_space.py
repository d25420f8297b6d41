"""A disk that cannot hold what a recipe writes is told before the first step, and only for what is not there yet."""

from types import SimpleNamespace

import pytest

from dhr_lightning.pipeline import space
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def test_a_small_disk_stops_a_recipe_before_anything_is_written(
    empty_workspace: Workspace, no_lightning: None, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    with_free(monkeypatch, 1000)
    assert empty_workspace.run() == 2
    (message,) = lines.messages
    assert message.startswith("error: The steps ahead will write about ")
    assert "but 1.0 kB are free" in message
    assert list(empty_workspace.folder.iterdir()) == []


def test_the_estimate_is_near_what_is_written(workspace: Workspace):
    plan = workspace.plan()
    fresh = sum(space._bytes_missing(step) for step in plan.steps)
    assert fresh == 0  # all of it is there
    written = estimated = 0
    for step in plan.steps:
        for address, split in step.outputs():
            folder = plan.view.store.folder(address, split)
            written += sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".png", ".npz", ".npy"))
            estimated += space.estimate_bytes(step.identity, address, space.facts_of(step.view.records(split)))
    assert 0.5 < estimated / written < 2


def test_what_is_there_needs_no_room(
    workspace: Workspace, no_lightning: None, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    with_free(monkeypatch, 0)
    assert workspace.run() == 0
    assert "run dhr+uss=patches: up to date" in lines.messages


def test_maps_on_the_grid_of_stored_features_are_small(empty_workspace: Workspace):
    plan = make_plan(Request("frozen", root=str(empty_workspace.data), overlays=("debug.yaml",)))
    facts = space.facts_of(plan.view.records("train"))
    largest = 520 + 2 * int(facts.tags.max()) * 28 * 28  # bytes of an image
    assert 0 < space.bytes_by_role([plan["cam"]], {"train": facts})["cam"] <= largest * facts.count
    assert space._bytes_missing(plan["uss"]) == 0  # its own step knows the channels
