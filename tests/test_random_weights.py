"""No step trains on photos from random weights unless it is told to."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.errors import ConfigError
from dhr_lightning.inspection.init import NEXT
from dhr_lightning.pipeline.command import split_request, stage_main
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.pipeline.runner import run_plan
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import REPOSITORY, STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
BACKBONE = {"cam": "resnet50", "uss": "vit_base_patch8_224.dino", "baseline": "resnet50", "dhr": "resnet50"}


class Started(Exception):
    """A stage began to fit."""


ALONE = ("--swap", "propagation=imported/theirs", "--drop", "cam")  # stage 3 without the network of stage 1


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of photos in an empty workspace, where nothing is fitted: the start of a fit raises `Started`."""

    def start(arguments: Sequence[str], **options: object) -> None:
        raise Started

    monkeypatch.setattr("dhr_lightning.cli.run_lightning", start)
    monkeypatch.chdir(tmp_path)
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos}\n")
    monkeypatch.setattr("dhr_lightning.pipeline.runner.check_inputs", lambda *arguments, **options: None)
    return "own.yaml"


def plans(dataset: str, *arguments: str) -> dict[str, Any]:
    """`model.init_args` by step, for arguments of the command line."""
    recipe = ["dhr"] if dataset != "microworld" else []
    plan = make_plan(split_request([*recipe, *arguments, "--data", dataset]))
    return {step.name: step.identity.arguments for step in plan.steps if step.identity}


def starts(stage: str, dataset: str, *arguments: str) -> bool:
    """Whether a stage begins to fit; otherwise it must end with an error that the user can repair."""
    try:
        status = stage_main(STAGES[stage], ["--data", dataset, *arguments])
    except Started:
        return True
    assert status == 2
    return False


@pytest.mark.parametrize(
    ("stage", "steps", "arguments"),
    [("stage1_cam", ["cam"], []), ("stage2_uss", ["uss"], []), ("stage3_dhr", ["baseline", "dhr"], list(ALONE))],
)
def test_random_weights_on_photos_stop_a_stage_before_any_work(
    photos: str, lines: Lines, monkeypatch: pytest.MonkeyPatch, stage: str, steps: list[str], arguments: list[str]
):
    monkeypatch.setattr("dhr_lightning.pipeline.runner.prepare", lambda plan: pytest.fail("work has begun"))
    assert stage_main(STAGES[stage], ["--data", photos, *arguments]) == 2
    (message,) = lines.messages
    named = " and ".join(f"{step} (backbone {BACKBONE[step]!r})" for step in steps)
    assert message.startswith(f"error: {named} would start from random weights")


@pytest.mark.parametrize(("stage", "arguments"), [("stage1_cam", []), ("stage2_uss", []), ("stage3_dhr", list(ALONE))])
def test_every_way_out_that_the_error_names_leads_on(photos: str, lines: Lines, stage: str, arguments: list[str]):
    assert not starts(stage, photos, *arguments)
    ways = re.findall(r"`(.*?)`", lines.messages[-1])
    assert len(ways) == 3
    Path("FILE").write_bytes(b"weights")
    for way in ways:
        assert starts(stage, photos, *arguments, *shlex.split(way)), way


def test_random_weights_are_meant_only_if_all_of_them_may_learn(photos: str, lines: Lines):
    scratch = ["--cam.from_scratch", "true", "--uss.from_scratch", "true"]
    assert not starts("stage1_cam", photos, *scratch)  # the first stages of a ResNet are frozen by its configuration
    assert "--cam.frozen_stages 0" in lines.messages[-1]
    assert "--cam.frozen_norm false" in lines.messages[-1]
    assert starts("stage1_cam", photos, *scratch, "--cam.frozen_stages", "0", "--cam.frozen_norm", "false")
    assert starts("stage2_uss", photos, *scratch)


def test_what_init_advises_leads_through_all_stages(photos: str, lines: Lines):
    assert main(["init", "photos", "--output", "new.yaml"]) == 0
    assert "next: python -m dhr_lightning run --data new.yaml --download" in lines.messages
    advised = ["--download", *re.findall(r": \.\.\. run (.*) --data new\.yaml", lines.text)]
    assert advised == ["--download", *(arguments for _, arguments in NEXT)]
    for name in ("FILE",):
        Path(name).write_bytes(b"weights")
    for arguments in advised:
        for stage in STAGES:
            assert starts(stage, "new.yaml", *shlex.split(arguments)), (stage, arguments)


def test_only_steps_that_run_need_weights(photos: str):
    Path("FILE").write_bytes(b"weights")
    assert starts("stage1_cam", photos, "--cam.pretrained", "FILE")
    assert not starts("stage2_uss", photos, "--cam.pretrained", "FILE")


def test_download_asks_for_weights_by_name_where_a_backbone_has_none(photos: str, lines: Lines):
    found = plans(photos, "--download")
    weights = {step: arguments.get("pretrained") for step, arguments in found.items()}
    assert weights == dict.fromkeys(found) | {"cam": True, "uss": True}  # cam fills the others
    found = plans(photos, *ALONE, "--download")
    weights = {step: arguments.get("pretrained") for step, arguments in found.items()}
    assert weights == {"uss": True, "baseline": True, "mars": None, "dhr": True}
    Path("FILE").write_bytes(b"weights")
    assert plans(photos, "--download", "--cam.pretrained", "FILE")["cam"]["pretrained"] == "FILE"
    found = plans("voc", "--overlay", "debug.yaml", "--download")
    assert "pretrained" not in found["cam"]
    assert found["uss"]["pretrained"] is False
    assert "pretrained" not in plans("microworld", "--download")["cam"]


def test_an_encoder_that_an_earlier_step_fills_needs_no_weights(photos: str):
    assert starts("stage3_dhr", photos)
    assert not starts("stage3_dhr", photos, *ALONE)


def test_what_is_no_photo_or_has_no_weights_to_take_starts_as_it_is(photos: str):
    Path("world.yaml").write_text("data: {dataset: microworld, root: world, options: {train: 2, val: 1}}\n")
    assert starts("stage1_cam", "world.yaml")
    assert starts("stage2_uss", photos, "--swap", "uss=patches")
    for stage in STAGES:
        assert starts(stage, photos, "--overlay", "debug.yaml"), stage


def test_small32_has_no_weights_to_name(photos: str, lines: Lines):
    for value in ("false", "true"):
        assert not starts("stage1_cam", photos, "--recipe", "quickstart", "--cam.pretrained", value)
        assert "cam (backbone 'small32') would start from random weights" in lines.messages[-1]
        assert "No pretrained weights of 'small32' exist" in lines.messages[-1]
        assert "--download" not in lines.messages[-1]
    assert not starts("stage1_cam", photos, "--recipe", "quickstart", "--download")


def test_a_file_of_weights_that_is_not_there_is_named_before_any_work(
    photos: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dhr_lightning.pipeline.runner.prepare", lambda plan: pytest.fail("work has begun"))
    assert not starts("stage1_cam", photos, "--cam.pretrained", "nowhere.pth")
    assert lines.messages[-1].startswith("error: cam: there is no file of weights at nowhere.pth")


@pytest.mark.parametrize("method", ["cam", "stego"])
def test_fit_stops_too_and_names_options_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines, method: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dhr_lightning.cli.LightningCLI.instantiate_classes", lambda cli: pytest.fail("built"))
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos}\n")
    Path("FILE").write_bytes(b"weights")
    command = ["fit", "--config", f"methods/{method}.yaml", "--config", "own.yaml"]
    assert main(command) == 2
    backbone = BACKBONE["cam" if method == "cam" else "uss"]
    assert lines.messages[-1].startswith(f"error: {method} (backbone {backbone!r}) would start from random weights")
    ways = re.findall(r"`(.*?)`", lines.messages[-1])
    assert len(ways) == 3
    for way in ways:
        with pytest.raises(pytest.fail.Exception, match="built"):
            main([*command, *shlex.split(way)])


def test_a_step_that_an_import_leaves_out_needs_no_weights(photos: str, lines: Lines):
    Path("theirs").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((16, 24), np.uint8)).save(Path("theirs") / f"{name}.png")
    assert main(["import", "mask", "theirs", "--data", photos]) == 0
    lines.clear()
    assert stage_main(STAGES["stage1_cam"], ["--data", photos, *ALONE]) == 0
    assert lines.messages == ["stage1_cam: up to date"]
    assert not starts("stage1_cam", photos)


def test_the_check_does_not_wait_for_torch(photos: str):
    script = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY / "stages" / "stage1_cam.py"), "--data", photos]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "2 False"


def test_planning_alone_refuses_nothing(photos: str):
    plan = make_plan(Request("dhr", data=photos))
    assert plan.steps[0].name == "cam"
    with pytest.raises(ConfigError, match="would start from random weights"):
        run_plan(plan, plan.steps, title="test")
