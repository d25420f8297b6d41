"""No step trains on photos from random weights unless it is told to."""

import inspect
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
from dhr_lightning.cli import TASKS
from dhr_lightning.errors import ConfigError
from dhr_lightning.inspection.init import NEXT
from dhr_lightning.pipeline import Request, plan_steps, run_stage, stage_main
from dhr_lightning.provenance import start_checks
from dhr_lightning.request import parse_request
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import REPOSITORY, STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
BACKBONE = {"cam": "resnet50", "uss": "vit_base_patch8_224.dino", "wss": "resnet50", "dhr": "resnet50"}


class Started(Exception):
    """A stage began to fit."""


ALONE = ("imported.yaml",)  # stage 3 without the network of stage 1


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of photos in an empty workspace, where nothing is fitted: the start of a fit raises `Started`."""

    def start(arguments: Sequence[str], **options: object) -> None:
        raise Started

    monkeypatch.setattr("dhr_lightning.cli.run_lightning", start)
    monkeypatch.chdir(tmp_path)
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos}\n")
    monkeypatch.setattr("dhr_lightning.pipeline.check_inputs", lambda *arguments, **options: None)
    return "own.yaml"


def plans(stage: str, dataset: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """`model.init_args` by step, for arguments of the command line."""
    planned = plan_steps(STAGES[stage], parse_request(STAGES[stage], ["--dataset", dataset, *arguments]))
    return {plan.step.name: plan.config["model"]["init_args"] for plan in planned}


def starts(stage: str, dataset: str, *arguments: str) -> bool:
    """Whether a stage begins to fit; otherwise it must end with an error that the user can repair."""
    try:
        status = stage_main(STAGES[stage], ["--dataset", dataset, *arguments])
    except Started:
        return True
    assert status == 2
    return False


@pytest.mark.parametrize(
    ("stage", "steps", "arguments"),
    [("stage1_cam", ["cam"], []), ("stage2_uss", ["uss"], []), ("stage3_dhr", ["wss", "dhr"], ["--overlay", *ALONE])],
)
def test_random_weights_on_photos_stop_a_stage_before_any_work(
    photos: str, lines: Lines, monkeypatch: pytest.MonkeyPatch, stage: str, steps: list[str], arguments: list[str]
):
    monkeypatch.setattr("dhr_lightning.pipeline.prepare", lambda plan: pytest.fail("work has begun"))
    assert stage_main(STAGES[stage], ["--dataset", photos, *arguments]) == 2
    (message,) = lines.messages
    named = " and ".join(f"{step} (backbone {BACKBONE[step]!r})" for step in steps)
    assert message.startswith(f"error: {named} would start from random weights")


@pytest.mark.parametrize(
    ("stage", "arguments"), [("stage1_cam", []), ("stage2_uss", []), ("stage3_dhr", ["--overlay", *ALONE])]
)
def test_every_way_out_that_the_error_names_leads_on(photos: str, lines: Lines, stage: str, arguments: list[str]):
    assert not starts(stage, photos, *arguments)
    ways = re.findall(r"`(.*?)`", lines.messages[-1])
    assert len(ways) == 3
    Path("FILE").write_bytes(b"weights")
    for way in ways:
        assert starts(stage, photos, *arguments, *shlex.split(way)), way


def test_random_weights_are_meant_only_if_all_of_them_may_learn(photos: str, lines: Lines):
    scratch = ["--", "--model.init_args.from_scratch", "true"]
    assert not starts("stage1_cam", photos, *scratch)  # the first stages of a ResNet are frozen by its configuration
    assert "--cam.model.init_args.frozen_stages 0" in lines.messages[-1]
    assert "--cam.model.init_args.frozen_norm false" in lines.messages[-1]
    learns = ["--model.init_args.frozen_stages", "0", "--model.init_args.frozen_norm", "false"]
    assert starts("stage1_cam", photos, *scratch, *learns)
    assert starts("stage2_uss", photos, *scratch)


def test_what_init_advises_leads_through_all_stages(photos: str, lines: Lines):
    assert main(["init", "photos", "--output", "new.yaml"]) == 0
    assert "next: make stage1 stage2 stage3 DATASET=new.yaml ARGS=--download" in lines.messages
    advised = ["--download", *re.findall(r"ARGS='(.*)'", lines.text)]
    assert advised == ["--download", *(arguments for _, arguments in NEXT)]
    for name in ("RESNET50.pth", "DINO_VITB8.pth"):
        Path(name).write_bytes(b"weights")
    for arguments in advised:
        for stage in STAGES:
            assert starts(stage, "new.yaml", *shlex.split(arguments)), (stage, arguments)


def test_download_asks_for_weights_by_name_where_a_backbone_has_none(photos: str, lines: Lines):
    assert plans("stage1_cam", photos, "--download")["cam"]["pretrained"] is True
    assert plans("stage2_uss", photos, "--download")["uss"]["pretrained"] is True
    found = plans("stage3_dhr", photos, "--overlay", *ALONE, "--download")
    assert {step: arguments.get("pretrained") for step, arguments in found.items()} == {
        "wss": True,
        "mars": None,
        "dhr": True,
    }
    lines.clear()
    found = plans("stage3_dhr", photos, "--download")
    assert not any("pretrained" in arguments for arguments in found.values())
    assert lines.messages == [f"{step}: encoder from cam, no weights to download" for step in ("wss", "dhr")]
    Path("FILE").write_bytes(b"weights")
    file = "--model.init_args.pretrained"
    assert plans("stage1_cam", photos, "--download", "--", file, "FILE")["cam"]["pretrained"] == "FILE"
    small = ["--overlay", "debug.yaml", "--download"]
    assert "pretrained" not in plans("stage1_cam", "voc", *small)["cam"]
    assert plans("stage2_uss", "voc", *small)["uss"]["pretrained"] is False
    assert "pretrained" not in plans("stage1_cam", "microworld", "--download")["cam"]


def test_an_encoder_that_an_earlier_step_fills_needs_no_weights(photos: str):
    assert starts("stage3_dhr", photos)
    assert not starts("stage3_dhr", photos, "--", "--dhr.model.init_args.init_from", "null")


def test_what_is_no_photo_or_has_no_weights_to_take_starts_as_it_is(photos: str):
    Path("world.yaml").write_text("data: {dataset: microworld, root: world, options: {train: 2, val: 1}}\n")
    assert starts("stage1_cam", "world.yaml", "--overlay")
    assert starts("stage2_uss", photos, "--config", "uss=stage2_filterbank.yaml")
    for stage in STAGES:
        options = ["--", "--data.options", "{}"]  # debug.yaml has sizes of the built-in data there
        assert starts(stage, photos, "--overlay", "debug.yaml", *options), stage


def test_small32_has_no_weights_to_name(photos: str, lines: Lines):
    for value in ("false", "true"):
        arguments = ["--overlay", "quickstart.yaml", "--", "--model.init_args.pretrained", value]
        assert not starts("stage1_cam", photos, *arguments)
        assert "cam (backbone 'small32') would start from random weights" in lines.messages[-1]
        assert "No pretrained weights of 'small32' exist" in lines.messages[-1]
        assert "--download" not in lines.messages[-1]
    assert not starts("stage1_cam", photos, "--overlay", "quickstart.yaml", "--download")


def test_a_file_of_weights_that_is_not_there_is_named_before_any_work(
    photos: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dhr_lightning.pipeline.prepare", lambda plan: pytest.fail("work has begun"))
    assert not starts("stage1_cam", photos, "--", "--model.init_args.pretrained", "nowhere.pth")
    assert lines.messages[-1].startswith("error: cam: there is no file of weights at nowhere.pth")


@pytest.mark.parametrize("step", ["stage1_cam.yaml", "stage2_stego.yaml"])
def test_fit_stops_too_and_names_options_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines, step: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dhr_lightning.cli.LightningCLI.instantiate_classes", lambda cli: pytest.fail("built"))
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos}\n")
    Path("FILE").write_bytes(b"weights")
    command = ["fit", "--config", step, "--config", "own.yaml"]
    assert main(command) == 2
    task, backbone = ("CAMTask", "resnet50") if "cam" in step else ("USSTask", BACKBONE["uss"])
    assert lines.messages[-1].startswith(f"error: {task} (backbone {backbone!r}) would start from random weights")
    ways = re.findall(r"`(.*?)`", lines.messages[-1])
    assert len(ways) == 3
    for way in ways:
        with pytest.raises(pytest.fail.Exception, match="built"):
            main([*command, *shlex.split(way)])


def test_a_step_that_an_import_leaves_out_needs_no_weights(photos: str, lines: Lines):
    Path("theirs").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((16, 24), np.uint8)).save(Path("theirs") / f"{name}.png")
    assert main(["import", "base_mask", "theirs", "--dataset", photos]) == 0
    lines.clear()
    assert stage_main(STAGES["stage1_cam"], ["--dataset", photos]) == 0
    assert "cam: left out, base_mask/train was imported" in lines.text
    assert not starts("stage1_cam", photos, "--force")


def test_the_table_has_the_backbones_of_the_signatures():
    defaults = {task.__name__: inspect.signature(task.__init__).parameters.get("backbone") for task in TASKS}
    assert {name: one.default for name, one in defaults.items() if one} == dict(start_checks.BACKBONES)


def test_the_check_does_not_wait_for_torch(photos: str):
    script = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY / "stages" / "stage1_cam.py"), "--dataset", photos]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "2 False"


def test_planning_alone_refuses_nothing(photos: str):
    assert len(plan_steps(STAGES["stage1_cam"], Request(photos))) == 1
    with pytest.raises(ConfigError):
        run_stage(STAGES["stage1_cam"], Request(photos))
