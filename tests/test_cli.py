"""The command line: every configuration parses, mistakes are named, and the commands of our own do what they say."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dhr_lightning import cli
from dhr_lightning.__main__ import COMMANDS, LIGHTNING, main
from dhr_lightning.cli import run_lightning, split_arguments
from dhr_lightning.data.microworld.generate import MICROWORLD_CLASSES
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.recipe import shipped_recipes
from dhr_lightning.pipeline.request import Request
from dhr_lightning.steps import methods
from tests.pipeline_workspace import REPOSITORY, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]

RECIPES = shipped_recipes()
DATA = sorted(path.stem for path in (REPOSITORY / "configs" / "data").glob("*.yaml"))
OVERLAYS = ("debug.yaml",)


def print_config(text: str) -> None:
    """Let the parser read a configuration, without making anything of it."""
    with pytest.raises(SystemExit) as end:
        run_lightning(["fit", "--config", text, "--print_config"])
    assert end.value.code == 0


def test_all_configurations_are_tried_below():
    folder = REPOSITORY / "configs"
    shipped = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    names = {*(f"recipes/{name}.yaml" for name in RECIPES), *(f"data/{name}.yaml" for name in DATA), *OVERLAYS}
    assert shipped == names


@pytest.mark.parametrize("overlays", [(), OVERLAYS], ids=["plain", "debug"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step_of_every_recipe_parses(
    recipe: str, overlays: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for step in make_plan(Request(recipe, root=str(tmp_path), overlays=overlays)).steps:
        config = step.identity.config
        capsys.readouterr()
        print_config(yaml.safe_dump(dict(config), sort_keys=False))
        parsed = yaml.safe_load(capsys.readouterr().out)
        assert parsed["model"]["class_path"] == step.step.spec.task
        assert config["model"]["init_args"].items() <= parsed["model"]["init_args"].items()
        assert {name: parsed["data"][name] for name in ("dataset", "method", "step")} == {
            "dataset": "microworld", "method": step.step.use, "step": step.name
        }  # fmt: skip
        if "max_epochs" in (config.get("trainer") or {}):
            assert parsed["trainer"]["max_epochs"] == config["trainer"]["max_epochs"]


@pytest.mark.parametrize("method", sorted(methods()))
def test_the_configuration_of_every_method_is_enough_for_fit(method: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        run_lightning(["fit", "--config", f"methods/{method}.yaml", *_some_inputs(method), "--print_config"])
    assert end.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert (parsed["model"]["class_path"], parsed["data"]["method"]) == (methods()[method].spec.task, method)


def _some_inputs(method: str) -> list[str]:
    reads = methods()[method].spec.reads
    return [
        word
        for port, read in reads.items()
        if read.kinds
        for word in (f"--data.inputs.{port}", f"other/0123456789/{read.kinds[0]}")
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data: {bach_size: 2}", "bach_size"),
        ("model: {init_args: {backgruond: 0.2}}", "backgruond"),
        ("trainer: {max_epoch: 2}", "max_epoch"),
        ("trainr: {max_epochs: 2}", "trainr"),
        ("trainer: {callbacks: [{class_path: PseudoMaskRefresh, init_args: {evry: 2}}]}", "evry"),
        ("per_method: {cam: {lrr: 0.2}}", "lrr"),
    ],
)
def test_a_misspelt_key_of_a_file_fails_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str
):
    (tmp_path / "overlay.yaml").write_text(text)
    files = ["methods/cam.yaml", "data/microworld.yaml", "debug.yaml", str(tmp_path / "overlay.yaml")]
    with pytest.raises(SystemExit) as end:
        main(["fit", *(argument for path in files for argument in ("--config", path))])
    assert end.value.code == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "override", "reason"),
    [
        ("propagation", "--model.init_args.crf.itterations=3", "itterations"),
        ("dhr", "--model.init_args.rebalance={'tauu': 0.5}", "tauu"),
        ("dhr", "--model.init_args.rebalance={'tau': 1.5}", "tau"),
        ("cam", "--model.init_args.backbone=resnet51", "Unknown backbone 'resnet51'"),
        ("cam", "--model.init_args.optimizer=lion", "sgd or adamw, but got 'lion'"),
        ("cam", "--data.dataset=vox", "Unknown dataset 'vox'. Known: microworld, voc"),
        ("dhr", "--trainer.callbacks=[{class_path: PseudoMaskRefresh, init_args: {every: 0}}]", "got 0"),
    ],
)
def test_what_a_constructor_refuses_is_one_line_with_the_reason(
    empty_workspace: Workspace, lines: Lines, step: str, override: str, reason: str
):
    command = "predict" if step == "propagation" else "fit"
    assert main([command, *empty_workspace.configs(step), override]) == 2
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


@pytest.mark.parametrize(("name", "images", "status"), [("predict", 0, 2), ("predict", 1, 0), ("fit", 0, 0)])
def test_a_prediction_of_no_image_is_no_success(
    name: str, images: int, status: int, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    data = SimpleNamespace(
        step="dhr", root="photos", predict_splits=("val", "test"), records=lambda split: [0] * images
    )
    monkeypatch.setattr(cli, "run_lightning", lambda arguments: SimpleNamespace(datamodule=data))
    assert main([name, "--config", "a.yaml"]) == status
    assert any("the splits that dhr predicts (val, test) are empty in photos" in line for line in lines.messages) == (
        status == 2
    )


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
    arguments = empty_workspace.configs("cam")
    short = [*arguments, "--trainer.max_epochs=1"]
    run = empty_workspace.run_folder("cam", "--cam.trainer.max_epochs=1")
    weights = str(run / "version_0" / "checkpoints" / "last.ckpt")

    assert main(["fit", *short]) == 0
    assert Path(weights).is_file()
    assert main(["predict", *short]) == 2
    assert lines.messages[-1].endswith("Add --ckpt_path PATH.")
    assert main(["validate", *short, "--ckpt_path", weights]) == 0
    assert empty_workspace.store.addresses() == []
    assert main(["predict", *short, "--ckpt_path", weights]) == 0
    assert empty_workspace.status("cam/train", "--cam.trainer.max_epochs=1").fresh


def test_a_recipe_goes_on_with_what_lightning_commands_made(workspace: Workspace, lines: Lines, ran: list[str]):
    shutil.rmtree(workspace.artifact("propagation/train"))
    assert main(["predict", *workspace.configs("propagation")]) == 0
    ran.clear()
    assert workspace.run() == 0
    assert ran == []


def test_settings_of_the_command_win_over_those_in_the_checkpoint(workspace: Workspace):
    weights = str(workspace.run_folder("cam") / "version_0" / "checkpoints" / "last.ckpt")
    before = workspace.hashes("cam/train")
    assert main(["predict", *workspace.configs("cam"), "--ckpt_path", weights, "--model.init_args.cam_stride=8"]) == 0
    place = workspace.place("cam/train", "--cam.cam_stride=8")
    assert place != workspace.place("cam/train")
    assert set(workspace.hashes("cam/train", "--cam.cam_stride=8").values()).isdisjoint(before.values())
    assert workspace.hashes("cam/train") == before


def test_weights_of_another_class_list_are_refused(workspace: Workspace, lines: Lines, tiny_voc: Path):
    configs = [a for path in ("methods/cam.yaml", "data/voc.yaml", "debug.yaml") for a in ("--config", path)]
    weights = str(workspace.run_folder("cam") / "version_0" / "checkpoints" / "last.ckpt")
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
    Path("small.yaml").write_text("data: {dataset: microworld, options: {seed: 3, train: 2, val: 1}}\n")
    assert main(["prepare", "--data", "small.yaml", "--root", "scenes"]) == 0
    assert lines.messages[-2].startswith("microworld/train: 2 images, ")
    assert lines.messages[-1].startswith("microworld/val: 1 images, ")
    (photo,) = Path("scenes/JPEGImages").glob("val_0001.*")
    photo.write_bytes(photo.read_bytes()[:100])
    assert main(["prepare", "--data", "small.yaml", "--root", "scenes"]) == 2
    assert photo.name in lines.messages[-1]


def test_prepare_refuses_a_dataset_that_is_not_there(tmp_path: Path, lines: Lines):
    assert main(["prepare", "--data", "voc", "--root", str(tmp_path / "nowhere"), "--workspace", str(tmp_path)]) == 2
    assert "nowhere" in lines.messages[-1]
    assert main(["prepare", "--data", "vox"]) == 2
    assert "data/vox.yaml" in lines.messages[-1]


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
    folder = workspace.artifact("dhr/val")
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
    shutil.rmtree("reports")
    assert workspace.command("report", "--images", "2") == 0
    folder = Path("reports/microworld/dhr+uss=patches")
    assert lines.messages[-1] == f"Report: {folder}/report.html"
    result = json.loads((folder / "report.json").read_text())
    masks = [name for name in workspace.places() if name != "uss/train"]
    assert set(result["metrics"]) == set(masks)
    fits = {"cam", "uss", "baseline", "mars", "dhr"}
    expected = {*(f"fit {step}" for step in fits), *(f"predict {step}" for step in (*fits, "propagation"))}
    assert set(result["seconds"]) == expected
    (refined,) = (note for note in result["notes"] if note.startswith("Refined with "))
    assert refined.endswith(": propagation/train, mars/train, dhr/train.")
    assert "<html" in (folder / "report.html").read_text()


def test_predicting_other_photos_never_replaces_what_a_recipe_predicted(
    workspace: Workspace, lines: Lines, tmp_path: Path
):
    weights = str(workspace.run_folder("cam") / "version_0" / "checkpoints" / "last.ckpt")
    before = workspace.hashes("cam/train")
    others = tmp_path / "others"
    shutil.copytree(workspace.data, others)
    train = others / "ImageSets" / "Segmentation" / "train.txt"
    train.write_text("\n".join(train.read_text().split()[1:]) + "\n")
    arguments = [*workspace.configs("cam"), "--ckpt_path", weights]
    assert main(["predict", *arguments, "--data.root", str(others)]) == 2
    assert "holds predictions of 12 other images, which would be lost" in lines.messages[-1]
    assert workspace.hashes("cam/train") == before
    elsewhere = ["--data.root", str(others), "--data.workspace", str(tmp_path / "new")]
    assert main(["predict", *arguments, *elsewhere]) == 0
    assert main(["predict", *arguments]) == 0  # the same images: nothing is lost
