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
from dhr_lightning.errors import ConfigError
from dhr_lightning.pipeline.command import split_request, stage_main
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
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


WORDS = ("--root", "data", "--swap", "uss=patches", "--overlay", "debug.yaml")
SHORT = ("--cam.trainer.max_epochs=1", "--baseline.trainer.max_epochs=1", "--dhr.trainer.max_epochs=1")


def plan_of(data: str, *words: str) -> RecipePlan:
    return make_plan(split_request([*words, "--data", data]))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(BENCHMARKS))
def test_all_stages_finish_without_background(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    write, last = BENCHMARKS[dataset]
    write(tmp_path / "data")
    give_texture(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--data", dataset, "--root", "data"]) == 0
    lines.clear()
    words = ["--data", dataset, *WORDS, *SHORT]
    for name in STAGES:
        assert stage_main(STAGES[name], words) == 0, lines.text

    store, plan = ArtifactStore("artifacts", dataset), plan_of(dataset, *WORDS, *SHORT)
    assert plan.recipe.name == "no_background+uss=patches"
    assert [step.name for step in plan.steps] == ["cam", "propagation", "baseline", "uss", "dhr"]
    assert set(store.addresses()) == {output for step in plan.steps for output in step.outputs()}
    round_0 = plan["dhr"].address("mask")
    made = store.manifest(round_0, "train")
    assert {f"{plan['propagation'].address('mask')}/train", f"{plan['uss'].address('features')}/train"} < set(
        made.inputs
    )
    for name in IMAGES["train"]:  # no value but those of the tags, and 0 is one of them
        assert set(np.unique(read_mask(store.path(round_0, "train", name)))) <= {0, last, 255}

    lines.clear()
    assert stage_main(STAGES["stage3_dhr"], words) == 0
    assert lines.messages == ["stage3_dhr: up to date"]
    lines.clear()
    assert main(["status", "--data", dataset, "--root", "data"]) == 0
    assert "fresh" in lines.text
    assert "absent" not in lines.text
    report = json.loads(Path(f"reports/{dataset}/no_background+uss=patches/report.json").read_text())
    assert "dhr/val" in report["metrics"]
    assert not any("mars" in note.casefold() for note in report["notes"])


@pytest.fixture
def plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of photos whose pixels all belong to a class; the name of its configuration."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("photos"), "image,tag\na.jpg,cat\nb.jpg,dog\n", ["a.jpg", "b.jpg"])
    Path("own.yaml").write_text("data: {dataset: folder, root: photos, options: {background: false}}\n")
    return "own.yaml"


def masks_of(data: str, *words: str) -> str:
    """The step whose masks DHR starts from."""
    return plan_of(data, *words)["dhr"].step.reads["masks"]


def test_only_datasets_without_background_start_dhr_from_the_first_masks(plain_folder: str):
    for data in (*BENCHMARKS, plain_folder):
        assert masks_of(data) == masks_of(data, "photos") == "propagation"
        assert masks_of(data, "dhr", "--drop", "mars") == "propagation"
    for data in ("microworld", "voc", "coco"):
        assert masks_of(data) == "mars"
    Path("own.yaml").write_text("data: {dataset: folder, root: photos, options: {background: true}}\n")
    assert masks_of(plain_folder, "dhr") == "mars"


@pytest.mark.parametrize("recipe", ["dhr", "mars", "mine.yaml"])
def test_a_method_that_needs_background_is_refused_before_any_work(
    plain_folder: str, lines: Lines, no_lightning: None, monkeypatch: pytest.MonkeyPatch, recipe: str
):
    monkeypatch.setattr("dhr_lightning.pipeline.runner.prepare", lambda plan: pytest.fail("work has begun"))
    steps = "mars: {use: mars, reads: {masks: propagation, features: uss}}, dhr: {reads: {masks: mars}}"
    Path("mine.yaml").write_text(f"schema: 1\nextends: no_background\nsteps: {{{steps}}}\n")
    assert main(["run", recipe, "--data", plain_folder]) == 2
    (message,) = lines.messages
    assert message.startswith("error: mars (mars) needs a background class, which photos lacks.")
    assert "--drop mars" in message
    assert "the recipe no_background" in message


def test_both_ways_out_that_the_error_names_make_a_plan(plain_folder: str):
    for words in (["dhr", "--drop", "mars"], ["no_background"]):
        plan = plan_of(plain_folder, *words)
        assert "mars" not in [step.name for step in plan.steps]


def test_fit_refuses_mars_without_background(plain_folder: str, lines: Lines):
    inputs = ["--data.inputs.masks", "crf/0123456789/mask", "--data.inputs.features", "stego/0123456789/features"]
    assert main(["fit", "--config", "methods/mars.yaml", "--config", plain_folder, *inputs]) == 2
    assert lines.messages[-1].startswith("error: mars (mars) needs a background class, which photos lacks.")


def test_a_dropped_step_that_nothing_stands_in_for_says_so(plain_folder: str):
    with pytest.raises(ConfigError, match="'propagation' cannot be dropped: baseline reads its masks"):
        plan_of(plain_folder, "--drop", "propagation")
