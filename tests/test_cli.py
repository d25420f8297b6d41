"""The command line: every configuration parses, mistakes are named, and the commands of our own do what they say."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dhr_lightning import cli
from dhr_lightning.__main__ import COMMANDS, LIGHTNING, main
from dhr_lightning.cli import run_lightning, split_arguments
from dhr_lightning.config import resolve
from dhr_lightning.data.microworld.generate import MICROWORLD_CLASSES
from dhr_lightning.errors import ConfigError
from tests.pipeline_workspace import REPOSITORY, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]

STEPS = sorted(path.name for path in (REPOSITORY / "configs").glob("stage*.yaml"))
DATA = sorted(f"data/{path.name}" for path in (REPOSITORY / "configs" / "data").glob("*.yaml"))
OVERLAYS = ("", "quickstart.yaml", "debug.yaml", "real.yaml", "imported.yaml", "no_background.yaml")
# Overlays say nothing of the data, so each meets every step but one dataset.
COMBINATIONS = [
    *itertools.product(STEPS, DATA, OVERLAYS[:1]),
    *itertools.product(STEPS, DATA[-1:], OVERLAYS[1:]),
]


def print_config(*paths: str, options: tuple[str, ...] = ()) -> None:
    """Let the parser read the files, without making anything of them."""
    files = [argument for path in paths if path for argument in ("--config", path)]
    with pytest.raises(SystemExit) as end:
        run_lightning(["fit", *files, *options, "--print_config"])
    assert end.value.code == 0


def test_all_configurations_are_in_a_combination_below():
    shipped = {path.relative_to(REPOSITORY / "configs").as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert shipped == {*STEPS, *DATA, *OVERLAYS} - {""}


@pytest.mark.parametrize(("step", "data", "overlay"), COMBINATIONS)
def test_every_combination_of_configurations_parses(
    step: str, data: str, overlay: str, capsys: pytest.CaptureFixture[str]
):
    paths = [path for path in (step, data, overlay) if path]
    print_config(*paths)
    parsed, resolved = yaml.safe_load(capsys.readouterr().out), resolve(paths)
    assert parsed["model"]["class_path"].endswith("." + resolved["model"]["class_path"])
    assert parsed["trainer"]["max_epochs"] == resolved["trainer"]["max_epochs"]
    assert parsed["data"]["dataset"] == resolved["data"]["dataset"]
    assert resolved["model"]["init_args"].items() <= parsed["model"]["init_args"].items()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data: {bach_size: 2}", "bach_size"),
        ("model: {init_args: {backgruond: 0.2}}", "backgruond"),
        ("trainer: {max_epoch: 2}", "max_epoch"),
        ("trainr: {max_epochs: 2}", "trainr"),
        ("trainer: {callbacks: [{class_path: PseudoMaskRefresh, init_args: {evry: 2}}]}", "evry"),
        ("per_task: {CAMTask: {model: {init_args: {lrr: 0.2}}}}", "lrr"),
    ],
)
def test_a_misspelt_key_of_a_file_fails_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str
):
    (tmp_path / "overlay.yaml").write_text(text)
    files = ["stage1_cam.yaml", "data/microworld.yaml", "debug.yaml", str(tmp_path / "overlay.yaml")]
    with pytest.raises(SystemExit) as end:
        main(["fit", *(argument for path in files for argument in ("--config", path))])
    assert end.value.code == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "override", "reason"),
    [
        ("stage1_cam.yaml", "--model.init_args.crf.itterations=3", "itterations"),
        ("stage3_dhr.yaml", "--model.init_args.rebalance={'tauu': 0.5}", "tauu"),
        ("stage3_dhr.yaml", "--model.init_args.rebalance={'tau': 1.5}", "tau"),
        ("stage1_cam.yaml", "--model.init_args.backbone=resnet51", "Unknown backbone 'resnet51'"),
        ("stage1_cam.yaml", "--model.init_args.optimizer=lion", "sgd or adamw, but got 'lion'"),
        ("stage1_cam.yaml", "--data.dataset=vox", "Unknown dataset 'vox'. Known: microworld, voc"),
        ("stage3_dhr.yaml", "--trainer.callbacks=[{class_path: PseudoMaskRefresh, init_args: {every: 0}}]", "got 0"),
    ],
)
def test_what_a_constructor_refuses_is_one_line_with_the_reason(
    empty_workspace: Workspace, lines: Lines, step: str, override: str, reason: str
):
    assert main(["fit", *empty_workspace.configs(step), override]) == 2
    (line,) = lines.messages
    assert line.startswith("error: ")
    assert reason in line


@pytest.mark.parametrize("arguments", [["--config"], ["--config="], ["--config", "--data.seed", "1"]])
def test_config_without_a_file_is_refused(arguments: list[str]):
    with pytest.raises(ConfigError, match="--config needs a file"):
        split_arguments(arguments)


def test_arguments_are_sorted_by_what_they_are_for():
    arguments = ["--config=a.yaml", "-c", "b.yaml", "--data.seed", "1", "--trainer.devices=2", "--ckpt_path", "x"]
    paths, overrides, others = split_arguments([*arguments, "--seed_everything", "3", "--print_config"])
    assert paths == ["a.yaml", "b.yaml"]
    assert overrides == ["--data.seed", "1", "--trainer.devices=2", "--seed_everything", "3"]
    assert others == ["--ckpt_path", "x", "--print_config"]


@pytest.mark.parametrize("given", [["--ckpt_path=last.ckpt"], ["--ckpt_path", "last.ckpt"]])
def test_a_checkpoint_is_recorded_and_read_safely_however_it_is_written(
    given: list[str], monkeypatch: pytest.MonkeyPatch
):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "DHRCommandLine", lambda arguments, **options: seen.update(options, arguments=arguments))
    run_lightning(["predict", *given])
    assert seen["checkpoint"] == Path("last.ckpt")
    assert seen["arguments"] == ["predict", *given, "--return_predictions", "false", "--weights_only", "true"]
    run_lightning(["predict", *given, "--weights_only=false", "--return_predictions=true"])
    assert seen["arguments"] == ["predict", *given, "--weights_only=false", "--return_predictions=true"]


def test_lightning_commands_work_by_themselves(empty_workspace: Workspace, lines: Lines):
    configs = [f"configs/{name}" for name in ("stage1_cam.yaml", "data/microworld.yaml", "debug.yaml")]
    arguments = [a for path in configs for a in ("--config", path)] + ["--data.root", str(empty_workspace.data)]
    weights = "runs/microworld/cam/version_0/checkpoints/last.ckpt"

    assert main(["fit", *arguments, "--trainer.max_epochs=1"]) == 0
    assert Path(weights).is_file()
    assert main(["predict", *arguments]) == 2
    assert lines.messages[-1].endswith("Add --ckpt_path PATH.")
    assert main(["validate", *arguments, "--ckpt_path", weights]) == 0
    assert empty_workspace.store.kinds() == []
    assert main(["predict", *arguments, "--ckpt_path", weights]) == 0
    assert empty_workspace.store.status("base_mask", "train").fresh


def test_settings_of_the_command_win_over_those_in_the_checkpoint(workspace: Workspace):
    weights = "runs/microworld/cam/version_0/checkpoints/last.ckpt"
    arguments = [*workspace.configs("stage1_cam.yaml"), "--ckpt_path", weights]
    assert main(["predict", *arguments, "--model.init_args.background=0.999", "--model.init_args.refine=none"]) == 0
    folder = workspace.store.folder("base_mask", "train")
    shares = [float((np.array(Image.open(path)) == 0).mean()) for path in folder.glob("*.png")]
    assert min(shares) > 0.9


def test_weights_of_another_class_list_are_refused(workspace: Workspace, lines: Lines, tiny_voc: Path):
    configs = [a for path in ("stage1_cam.yaml", "data/voc.yaml", "debug.yaml") for a in ("--config", path)]
    weights = "runs/microworld/cam/version_0/checkpoints/last.ckpt"
    assert main(["predict", *configs, "--data.root", str(tiny_voc), "--ckpt_path", weights]) == 2
    assert "trained on 11 classes (background, cat, dog, car, bus, train, table, bottle" in lines.messages[-1]
    assert "but the data has 21 (background, aeroplane, bicycle" in lines.messages[-1]


def test_usage_lists_every_command(lines: Lines):
    for arguments in ([], ["--help"], ["help"]):
        lines.clear()
        assert main(arguments) == 0
        assert all(f"  {name} " in lines.text for name in {**COMMANDS, **LIGHTNING})


def test_an_unknown_command_shows_the_usage(lines: Lines):
    assert main(["trian"]) == 2
    assert lines.text.startswith("Unknown command 'trian'.\n\nusage:")


@pytest.mark.parametrize("command", [*COMMANDS, *LIGHTNING])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_prepare_makes_and_checks_the_dataset(tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/small.yaml").write_text("data: {dataset: microworld, options: {seed: 3, train: 2, val: 1}}\n")
    assert main(["prepare", "--dataset", "small", "--root", "scenes"]) == 0
    assert lines.messages[-2].startswith("microworld/train: 2 images, ")
    assert lines.messages[-1].startswith("microworld/val: 1 images, ")
    (photo,) = Path("scenes/JPEGImages").glob("val_0001.*")
    photo.write_bytes(photo.read_bytes()[:100])
    assert main(["prepare", "--dataset", "small", "--root", "scenes"]) == 2
    assert photo.name in lines.messages[-1]


def test_prepare_refuses_a_dataset_that_is_not_there(tmp_path: Path, lines: Lines):
    assert main(["prepare", "--dataset", "voc", "--root", str(tmp_path / "nowhere"), "--workspace", str(tmp_path)]) == 2
    assert "nowhere" in lines.messages[-1]
    assert main(["prepare", "--dataset", "vox"]) == 2
    assert "data/vox.yaml" in lines.messages[-1]


def test_status_tells_fresh_stale_partial_and_absent_apart(workspace: Workspace, lines: Lines):
    def rows() -> dict[str, str]:
        lines.clear()
        status = main(["status"])
        found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines.messages}
        assert status == int(any(text.startswith(("stale", "partial")) for text in found.values()))
        return found

    assert all(text.startswith("fresh  ") for text in rows().values())
    assert "12 images" in rows()["base_mask/train"]
    assert rows().keys() >= {"cam/train", "dhr_mask/round_01/train", "prediction/val"}

    workspace.store.path("wss_mask", "train", "train_0007").unlink()
    found = rows()
    assert found["wss_mask/train"].startswith("partial (1 of 12 files are missing")
    assert "'train_0007'" in found["wss_mask/train"]
    assert found["wss_mask/train"].endswith("run `make stage3`")
    workspace.store.forget("uss", "train")
    found = rows()
    assert found["uss/train"] == "absent (run `make stage2`)"
    assert found["dhr_mask/round_01/train"].startswith("stale (input uss/train ")
    assert found["dhr_mask/round_01/train"].endswith("-> absent); run `make stage3`")


def test_status_of_an_empty_workspace_says_what_to_run(empty_workspace: Workspace, lines: Lines):
    assert main(["status"]) == 0
    assert any(line.startswith("cam/train") and line.endswith("absent (run `make stage1`)") for line in lines.messages)


def independent_miou(predictions: Path, truths: Path) -> float:
    """Mean IoU over the classes that occur, one class and one image at a time."""
    union, hits = np.zeros(11), np.zeros(11)
    for path in sorted(truths.glob("val_*.png")):
        truth, found = np.array(Image.open(path)), np.zeros((128, 128), np.uint8)
        if (predictions / path.name).is_file():
            found = np.array(Image.open(predictions / path.name))
        for value in range(11):
            one, other = found[truth != 255] == value, truth[truth != 255] == value
            hits[value] += (one & other).sum()
            union[value] += (one | other).sum()
    return float(np.mean(hits[union > 0] / union[union > 0]))


def test_evaluate_agrees_with_an_independent_computation(workspace: Workspace, lines: Lines):
    folder = workspace.store.folder("prediction", "val")
    arguments = ["evaluate", "--pred", str(folder), "--root", str(workspace.data), "--json", "scores.json"]
    assert main(arguments) == 0
    result = json.loads(Path("scores.json").read_text())
    assert result["miou"] == pytest.approx(independent_miou(folder, workspace.data / "SegmentationClass"), abs=1e-9)
    assert tuple(result["iou"]) == MICROWORLD_CLASSES
    assert lines.messages[-1].startswith("Protocol: microworld, split val: 4 images; pixels whose truth is 255 ")
    assert lines.messages[-1].endswith("; TTA: scale 1 with flip; no CRF; all classes.")

    (folder / "val_0002.png").unlink()
    assert main(arguments) == 2
    assert "1 of 4 predictions are missing" in lines.messages[-1]
    assert "first val_0002.png" in lines.messages[-1]
    assert main([*arguments, "--missing", "background"]) == 0
    result = json.loads(Path("scores.json").read_text())
    assert result["miou"] == pytest.approx(independent_miou(folder, workspace.data / "SegmentationClass"), abs=1e-9)
    assert "1 missing predictions counted as background" in result["protocol"]
    assert main([*arguments, "--missing", "ignore"]) == 2
    assert "'ignore'" in lines.messages[-1]


def test_the_truth_scores_one(workspace: Workspace, lines: Lines):
    arguments = ["--pred", str(workspace.data / "SegmentationClass"), "--root", str(workspace.data)]
    assert main(["evaluate", *arguments, "--split", "train", "--json", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text())["miou"] == 1.0
    assert main(["evaluate", *arguments, "--split", "test"]) == 2


def test_report_judges_every_mask(workspace: Workspace, lines: Lines):
    assert main(["report", "--root", str(workspace.data), "--images", "2"]) == 0
    assert lines.messages[-1] == "Report: reports/microworld/report.html"
    result = json.loads(Path("reports/microworld/report.json").read_text())
    kinds = {"base_mask/train", "mars_mask/train", "wss_mask/train", "dhr_mask/round_01/train", "prediction/val"}
    assert kinds <= set(result["metrics"])
    steps = {"cam", "uss", "wss", "mars", "dhr"}
    assert set(result["seconds"]) == {f"{what} {step}" for what in ("fit", "predict") for step in steps}
    (refined,) = (note for note in result["notes"] if note.startswith("Refined with "))
    assert "base_mask/train, dhr_mask/round_00/train, dhr_mask/round_01/train, mars_mask/train." in refined
    assert "<html" in Path("reports/microworld/report.html").read_text()
