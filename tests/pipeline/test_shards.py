"""Arrays of jobs that share a prediction: what each writes, what `seal` declares, and what is refused."""

import json
import re
import shutil

import pytest

from dhr_lightning.errors import ConfigError
from dhr_lightning.shards import Shard, read_shard
from tests.pipeline_workspace import Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
IDS = [f"train_{number:04d}" for number in range(1, 13)]


def test_a_shard_is_read_as_it_is_written_and_has_every_nth_item():
    assert str(read_shard("2/8")) == "2/8"
    shares = [Shard(number, 3).of(range(8)) for number in (1, 2, 3)]
    assert [list(one) for one in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    for wrong in ("0/2", "3/2", "2", "1/0", "a/b", "-1/2", "1/2/3", "1.5/2"):
        with pytest.raises(ConfigError, match=rf"such as 2/8, but got '{wrong}'"):
            read_shard(wrong)


def written(workspace: Workspace, name: str) -> list[str]:
    return sorted(path.stem for path in workspace.artifact(name).iterdir() if re.match(r"train_\d+", path.name))


def shard(workspace: Workspace, step: str, text: str) -> int:
    return workspace.run(options=["--until", step, "--shard", text])


def seal(workspace: Workspace, step: str) -> int:
    return workspace.command("seal", "--until", step)


def test_jobs_in_any_order_make_what_one_makes_and_only_seal_declares_it(
    workspace: Workspace, ran: list[str], lines: Lines
):
    before = workspace.hashes("cam/train")
    shutil.rmtree(workspace.artifact("cam/train"))
    assert shard(workspace, "cam", "3/3") == 0
    assert written(workspace, "cam/train") == IDS[2::3]
    assert workspace.manifest("cam/train") is None
    assert "after the last one: python -m dhr_lightning seal dhr" in lines.text
    assert shard(workspace, "cam", "1/3") == 0
    assert ran == ["predict cam"] * 2
    assert lines.text.count("cam: predicts 4 images of train") == 2
    lines.clear()
    assert seal(workspace, "cam") == 2
    assert "4 of 12 files of shard 2/3 are missing" in lines.text
    assert f"first {IDS[1]!r}" in lines.text
    assert ran == ["predict cam"] * 2  # nothing was computed in their place
    assert workspace.manifest("cam/train") is None
    assert shard(workspace, "cam", "2/3") == 0
    assert not workspace.status("cam/train").fresh
    assert seal(workspace, "cam") == 0
    assert workspace.hashes("cam/train") == before
    assert workspace.status("cam/train").fresh
    lines.clear()
    assert seal(workspace, "cam") == 0
    assert shard(workspace, "cam", "2/3") == 0
    assert lines.messages.count("cam: up to date") == 2


def test_a_job_that_goes_on_has_the_same_share(workspace: Workspace):
    shutil.rmtree(workspace.artifact("propagation/train"))
    assert shard(workspace, "propagation", "1/2") == 0
    workspace.path("propagation/train", IDS[0]).unlink()
    assert shard(workspace, "propagation", "1/2") == 0
    assert written(workspace, "propagation/train") == IDS[::2]


def test_one_job_may_make_the_rest(workspace: Workspace):
    before = workspace.hashes("propagation/train")
    shutil.rmtree(workspace.artifact("propagation/train"))
    assert shard(workspace, "propagation", "1/4") == 0
    assert workspace.run(options=["--until", "propagation"]) == 0
    assert workspace.hashes("propagation/train") == before
    assert workspace.status("propagation/train").fresh


def test_what_jobs_need_is_made_by_one_of_them_first(empty_workspace: Workspace, ran: list[str], lines: Lines):
    assert shard(empty_workspace, "propagation", "1/2") == 2
    assert re.search(
        r"cam/\w+/cam/train of cam is absent.*first: `python -m dhr_lightning run .*--until cam", lines.text
    )
    lines.clear()
    assert shard(empty_workspace, "cam", "1/2") == 2
    assert re.search(r"fit of cam has not finished.*--until cam --no-predict", lines.text)
    assert ran == []
    assert empty_workspace.run(options=["--until", "cam", "--no-predict"]) == 0
    assert ran == ["fit cam"]
    assert shard(empty_workspace, "cam", "1/1") == 0
    assert seal(empty_workspace, "cam") == 0
    assert ran == ["fit cam", "predict cam", "predict cam"]
    assert empty_workspace.status("cam/train").fresh


def test_files_of_other_settings_are_neither_sealed_nor_made_again(workspace: Workspace, ran: list[str], lines: Lines):
    """Of a step whose address stays, such as one that reads a photo that was replaced."""
    assert seal(workspace, "propagation") == 0  # up to date
    (workspace.artifact("propagation/train") / "manifest.json").unlink()
    assert seal(workspace, "propagation") == 2
    assert "does not hold what jobs with these settings write: no job has begun it. Run all shards again" in lines.text
    shutil.rmtree(workspace.artifact("propagation/train"))
    for text in ("1/2", "2/2"):
        assert shard(workspace, "propagation", text) == 0
    partial = workspace.artifact("propagation/train") / ".partial.json"
    partial.write_text(partial.read_text().replace(workspace.manifest("cam/train").digest[:12], "0" * 12))
    before = workspace.hashes("propagation/train")
    lines.clear()
    assert seal(workspace, "propagation") == 2
    assert "does not hold what jobs with these settings write" in lines.text
    assert workspace.hashes("propagation/train") == before
    assert ran == ["predict propagation"] * 2


def test_weights_of_a_fit_on_other_inputs_are_not_used(workspace: Workspace, ran: list[str], lines: Lines):
    shutil.rmtree(workspace.artifact("cam/train"))
    state = workspace.run_folder("cam") / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "digest": "of other inputs"}))
    assert shard(workspace, "cam", "1/2") == 2
    assert "fit of cam has not finished" in lines.text
    assert ran == []


def test_options_that_make_no_sense_are_refused(workspace: Workspace, lines: Lines, no_lightning: None):
    assert workspace.run(options=["--shard", "1/2"]) == 2
    assert workspace.run(options=["--no-predict"]) == 2
    assert lines.text.count("name it with --until STEP") == 2
    assert workspace.run(options=["--until", "cam", "--shard", "1/2", "--force"]) == 2
    assert workspace.run(options=["--until", "cam", "--shard", "1/2", "--no-predict"]) == 2
    assert lines.text.count("it goes neither with --no-predict nor with --force") == 2
    assert workspace.run(options=["--until", "propagation", "--no-predict"]) == 2
    assert "propagation has no fit" in lines.text
    assert shard(workspace, "cam", "3/2") == 2
    assert "but got '3/2'" in lines.text
    assert seal(workspace, "camm") == 2
    assert "Did you mean cam?" in lines.text
