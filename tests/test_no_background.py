"""Datasets without background, from tags to a segmenter: MARS needs a background, everything else does not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.datasets.labels import CONTEXT_IDS, STUFF_IDS
from dhr_lightning.pipeline import Request, plan_steps, stage_main
from tests.data.datasets.folder_samples import write_folder
from tests.data.preparation.benchmark_layouts import SIZE, runs, write_context, write_grey, write_photo
from tests.pipeline_workspace import STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
SHAPE = (SIZE[1], SIZE[0])
IMAGES = {"train": ("2008_000001", "2008_000002"), "val": ("2008_000003",)}


def halves(left: int, right: int) -> np.ndarray:
    return np.repeat(np.array([[left, right]], np.uint8), SIZE[0] // 2, axis=1).repeat(SIZE[1], axis=0)


def write_ade(root: Path) -> None:
    for split, folder in {"train": "training", "val": "validation"}.items():
        for name in IMAGES[split]:
            write_photo(root / "images" / folder / f"{name}.jpg")
            write_grey(root / "annotations" / folder / f"{name}.png", halves(1, 150))


def write_stuff(root: Path) -> None:
    for split, names in IMAGES.items():
        for name in names:
            write_photo(root / "images" / f"{split}2017" / f"{name}.jpg")
            write_grey(root / "annotations" / f"{split}2017" / f"{name}.png", halves(STUFF_IDS[0], STUFF_IDS[170]))


def write_pascal_context(root: Path) -> None:
    regions = [(CONTEXT_IDS[0], runs(halves(1, 0) > 0)), (CONTEXT_IDS[58], runs(halves(0, 1) > 0))]
    write_context(root, {split: dict.fromkeys(names, regions) for split, names in IMAGES.items()})


BENCHMARKS: dict[str, tuple[Callable[[Path], None], int]] = {
    "ade": (write_ade, 149),
    "context": (write_pascal_context, 58),
    "stuff": (write_stuff, 170),
}


def give_texture(root: Path) -> None:
    """Replace the plain photos: features of a single colour cannot be told apart."""
    for seed, path in enumerate(sorted(root.rglob("*.jpg"))):
        noise = np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)


def run(name: str, dataset: str, *overrides: str) -> int:
    filterbank = ["--config", "uss=stage2_filterbank.yaml"]
    short = ["--cam.trainer.max_epochs=1", "--wss.trainer.max_epochs=1", "--dhr.trainer.max_epochs=1"]
    options = ["--dataset", dataset, *filterbank, "--overlay", "debug.yaml", "--", *short, *overrides]
    return stage_main(STAGES[name], options)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(BENCHMARKS))
def test_all_stages_finish_without_background(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    write, last = BENCHMARKS[dataset]
    write(tmp_path / "data")
    give_texture(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--dataset", dataset, "--root", "data"]) == 0
    lines.clear()
    for name in STAGES:
        assert run(name, dataset, "--data.root", "data") == 0, lines.text
    left_out = f"mars: left out, {dataset} has no background class, which MARS needs; DHR starts from base_mask"
    assert lines.messages.count(left_out) == 1

    store = ArtifactStore("artifacts", dataset)
    assert {kind for kind, _ in store.kinds()} == {
        "cam", "base_mask", "uss", "wss_mask", "prediction_base", "dhr_mask/round_00", "prediction"
    }  # fmt: skip
    made = store.manifest("dhr_mask/round_00", "train")
    assert {"base_mask/train", "uss/train", "cam/train"} < set(made.inputs)
    for name in IMAGES["train"]:  # no value but those of the tags, and 0 is one of them
        assert set(np.unique(read_mask(store.path("dhr_mask/round_00", "train", name)))) <= {0, last, 255}

    lines.clear()
    assert run("stage3_dhr", dataset, "--data.root", "data") == 0
    assert lines.messages == [left_out, "stage3_dhr: up to date"]
    lines.clear()
    assert main(["status", "--dataset", dataset, "--root", "data"]) == 0
    assert "mars" not in lines.text
    assert "fresh" in lines.text
    assert "absent" not in lines.text
    report = json.loads(Path(f"reports/{dataset}/report.json").read_text())
    assert "prediction/val" in report["metrics"]
    assert not any("mars" in note.casefold() for note in report["notes"])


@pytest.fixture
def plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of photos whose pixels all belong to a class; the name of its configuration."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos, options: {background: false}}\n")
    return "own.yaml"


def masks_of(dataset: str, *overrides: str, **options: object) -> dict[str, str | None]:
    """What each step of stage 3 starts from."""
    plans = plan_steps(STAGES["stage3_dhr"], Request(dataset, overrides=overrides, **options))
    return {plan.step.name: plan.config["model"]["init_args"].get("masks") for plan in plans}


def test_only_datasets_without_background_start_dhr_from_base_masks(plain_folder: str):
    for dataset in (*BENCHMARKS, plain_folder):
        assert masks_of(dataset)["dhr"] == masks_of(dataset, overlays=("real.yaml",))["dhr"] == "base_mask"
    for dataset in ("microworld", "voc", "coco"):
        assert masks_of(dataset)["dhr"] == "mars_mask"
    assert masks_of(plain_folder, "--data.options.background", "true")["dhr"] == "mars_mask"
    assert masks_of(plain_folder, "--dhr.model.init_args.masks", "wss_mask")["dhr"] == "wss_mask"


@pytest.mark.parametrize("how", ["override", "overlay"])
def test_mars_masks_asked_for_without_background_are_refused_before_any_work(
    plain_folder: str, lines: Lines, no_lightning: None, monkeypatch: pytest.MonkeyPatch, how: str
):
    monkeypatch.setattr("dhr_lightning.pipeline.prepare", lambda plan: pytest.fail("work has begun"))
    Path("mine.yaml").write_text("per_task: {DHRTask: {model: {init_args: {masks: mars_mask}}}}\n")
    asked = ["--", "--dhr.model.init_args.masks", "mars_mask"] if how == "override" else ["--overlay", "mine.yaml"]
    assert stage_main(STAGES["stage3_dhr"], ["--dataset", plain_folder, *asked]) == 2
    assert lines.messages[-1].startswith(
        "error: dhr would start from mars_mask, but MARS needs a background class, which"
    )
    assert "model.init_args.masks: base_mask" in lines.messages[-1]


def test_fit_refuses_mars_masks_without_background_and_takes_the_overlay(plain_folder: str, lines: Lines):
    configs = [a for one in ("stage3_dhr.yaml", plain_folder) for a in ("--config", one)]
    assert main(["fit", *configs]) == 2
    assert lines.messages[-1].startswith("error: DHRTask would start from mars_mask, but MARS needs a background class")
    assert main(["fit", *configs, "--config", "no_background.yaml", "--model.init_args.decoder", "unknown"]) == 2
    assert "mars_mask" not in lines.messages[-1]
