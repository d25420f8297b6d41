"""The recipes on frozen features, from photos to report in the size of `debug.yaml`, and what they share."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.frozen_features import FeatureReader
from dhr_lightning.pipeline.command import split_request
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
DEBUG = ("--overlay", "debug.yaml")
PATCHES = ("--swap", "uss=patches")
REST = ["fit cam", "predict cam", "predict propagation", "predict dhr", "fit segmenter", "predict segmenter"]
REST += ["predict segmenter_crf"]


def plan_of(recipe: str, *words: str, root: Path | str = "data/microworld") -> RecipePlan:
    return make_plan(split_request([recipe, *DEBUG, "--root", str(root), *words]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, debug_data: Path) -> Path:
    """A working directory where `frozen` has run. Read only."""
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "frozen", *DEBUG, "--root", str(debug_data)]) == 0
    return folder


@pytest.fixture
def frozen(finished: Path, debug_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Frozen":
    """A copy of it, entered."""
    folder = Path(shutil.copytree(finished, tmp_path / "workspace"))
    monkeypatch.chdir(folder)
    return Frozen(folder, debug_data)


class Frozen:
    """The copy with the dataset beside it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.store = ArtifactStore(folder / "artifacts", "microworld")

    def run(self, recipe: str = "frozen", *words: str) -> int:
        return main(["run", recipe, *DEBUG, "--root", str(self.data), *words])

    def report(self, name: str) -> dict[str, object]:
        return json.loads((self.folder / f"reports/microworld/{name}/report.json").read_text())["metrics"]


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a feature is computed."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a feature is computed")

    monkeypatch.setattr(FeatureReader, "features", refuse)
    monkeypatch.setattr(FeatureReader, "read", refuse)


def test_the_recipe_runs_to_its_report_and_then_is_up_to_date(frozen: Frozen, no_lightning: None, lines: Lines):
    assert {"segmenter/val", "segmenter_crf/val"} <= set(frozen.report("frozen"))
    plan = plan_of("frozen", root=frozen.data)
    protocols = {}
    for name in ("segmenter", "segmenter_crf"):
        info = frozen.store.manifest(plan[name].address("prediction"), "val").info
        protocols[name] = (info["protocol"]["gate"], info["protocol"]["crf"] is not None, info["protocol"]["flip"])
    assert protocols == {"segmenter": (False, False, False), "segmenter_crf": (True, True, False)}
    lines.clear()
    assert frozen.run() == 0
    assert lines.messages[0] == "run frozen: up to date"


def test_options_of_prediction_share_a_fit(frozen: Frozen, ran: list[str]):
    runs = list((frozen.folder / "runs/microworld/light").iterdir())
    assert len(runs) == 1
    assert frozen.run("frozen", "--", "--segmenter.flip=true", "--segmenter_crf.gate=false") == 0
    assert ran == ["predict segmenter", "predict segmenter_crf"]
    assert list((frozen.folder / "runs/microworld/light").iterdir()) == runs


def test_another_pooling_computes_no_feature_again(frozen: Frozen, no_backbone: None, ran: list[str], lines: Lines):
    words = ("--", "--cam.pooling={name: mean}", "--cam.background=scores")
    assert frozen.run("frozen", *words) == 0
    assert ran == REST
    ran.clear()
    lines.clear()
    assert frozen.run("frozen", *words) == 0
    assert (lines.messages[0], ran) == ("run frozen: up to date", [])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("frozen_mars", ["fit mars", "predict mars", *REST[3:]]),
        ("frozen_supervised", REST[4:]),
        ("frozen_rounds", ["fit dhr", "predict dhr", "predict segmenter_crf"]),
    ],
)
def test_variants_run_to_their_report_on_the_same_features(
    frozen: Frozen, no_backbone: None, ran: list[str], recipe: str, expected: Sequence[str]
):
    assert frozen.run(recipe) == 0
    assert ran == expected
    figures = frozen.report(recipe)
    assert {"segmenter_crf/val", "dhr/val" if recipe == "frozen_rounds" else "segmenter/val"} <= set(figures)
    if recipe == "frozen_rounds":
        rounds = [address for address, _ in plan_of(recipe, root=frozen.data)["dhr"].outputs() if "round" in address]
        assert [address.rpartition("/")[2] for address in rounds] == ["round_00", "round_01"]
        assert all(frozen.store.manifest(address, "train") for address in rounds)


def test_patches_in_place_of_the_backbone_are_written_for_the_splits_that_are_read(
    frozen: Frozen, no_backbone: None, ran: list[str], lines: Lines
):
    words = (*PATCHES, "--", "--cam.lr=10")  # few channels: the head is sure of nothing yet otherwise
    assert frozen.run("frozen", *words) == 0
    assert ran == ["fit uss", "predict uss", *REST]
    plan = plan_of("frozen", *PATCHES, root=frozen.data)
    for split, count in (("train", 12), ("val", 4)):
        assert len(list(frozen.store.folder(plan["uss"].address("features"), split).glob("*.npy"))) == count
    assert any("16 images x 16 channels" in line for line in lines.messages)
    assert {"segmenter/val", "segmenter_crf/val"} <= set(frozen.report("frozen+uss=patches"))
    lines.clear()
    assert frozen.run("frozen", *words) == 0
    assert lines.messages[0] == "run frozen+uss=patches: up to date"


@pytest.mark.parametrize("method", ["patches", "fitted", "stego"])
def test_features_of_other_splits_are_written_where_a_step_reads_them_at_one_address(method: str, debug_data: Path):
    swap, splits = ("--swap", f"uss={method}"), {}
    for recipe in ("dhr", "frozen"):
        uss = plan_of(recipe, *swap, root=debug_data)["uss"]
        splits[recipe] = uss.outputs()
    (address,) = {address for outputs in splits.values() for address, _ in outputs}
    assert splits["dhr"] == [(address, "train")]
    assert splits["frozen"] == [(address, "train"), (address, "val")]
    dropped = plan_of("frozen", *swap, root=debug_data)
    assert "splits" not in dropped["cam"].identity.config["data"]


@pytest.mark.slow
@pytest.mark.parametrize("background", ["true", "false"])
def test_photos_with_tags_alone_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines, background: str
):
    monkeypatch.chdir(tmp_path)
    photos = {f"{index}.png": ["cat", "dog"][index % 2 :][:1] for index in range(8)}
    table = "".join(f"{name},{tag}\n" for name, (tag,) in photos.items())
    write_folder(Path("photos"), f"image,tag\n{table}", photos)
    Path("own.yaml").write_text(
        f"data: {{dataset: folder, root: photos, options: {{background: {background}, holdout: 0.25}}}}\n"
    )
    words = ["run", "frozen", *DEBUG, "--data", "own.yaml", "--cam.background=scores"]
    assert main(words) == 0, lines.text
    lines.clear()
    assert main(words) == 0
    assert lines.messages[0] == "run frozen: up to date"
