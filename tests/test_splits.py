"""Which images each split brings to training, prediction and evaluation, from files to artifacts."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.pipeline import stage_main
from tests.pipeline_workspace import STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
VAL = ["2007_000005", "2007_000006"]
TEST = ["test_1", "test_2"]


def run(name: str) -> int:
    filterbank = ["--config", "uss=stage2_filterbank.yaml"]
    short = ["--cam.trainer.max_epochs=1", "--wss.trainer.max_epochs=1", "--dhr.trainer.max_epochs=1"]
    given = ["--data.root", "VOC2012", *short]
    return stage_main(STAGES[name], ["--dataset", "voc", *filterbank, "--overlay", "debug.yaml", "--", *given])


def add_test_split(root: Path) -> None:
    """Photos that nothing is known of, with other sizes than those of the other splits."""
    for name, size in zip(TEST, ((40, 24), (24, 40)), strict=True):
        Image.new("RGB", size, (120, 90, 60)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("".join(f"{name}\n" for name in TEST))


@pytest.mark.slow
def test_untagged_val_images_are_predicted_and_a_test_split_comes_later(
    voc_copy: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    monkeypatch.chdir(voc_copy.parent)
    (voc_copy / "Annotations" / f"{VAL[0]}.xml").unlink()
    (voc_copy / "Annotations" / "2007_000001.xml").unlink()
    for name in STAGES:
        assert run(name) == 0, lines.text
    store = ArtifactStore("artifacts", "voc")
    assert "voc/train: 1 images without tags are dropped (data.untagged: drop)" in lines.messages
    assert not any("voc/val" in line for line in lines.messages)
    assert store.manifest("base_mask", "train").count == 3
    for kind in ("prediction", "prediction_base"):
        assert [store.path(kind, "val", name).is_file() for name in VAL] == [True, True]
    evaluate = ["evaluate", "--dataset", "voc", "--root", "VOC2012", "--json", "scores.json", "--pred"]
    assert main([*evaluate, str(store.folder("prediction", "val"))]) == 0
    scored = json.loads(Path("scores.json").read_text())
    reported = json.loads(Path("reports/voc/report.json").read_text())["metrics"]["prediction/val"]
    assert scored["images"] == reported["images"] == 2
    assert scored["miou"] == reported["miou"]
    assert {split for _, split in store.kinds()} == {"train", "val"}

    lines.clear()
    add_test_split(voc_copy)
    assert main(["status", "--dataset", "voc", "--root", "VOC2012"]) == 0
    assert [line.split()[0] for line in lines.messages if "absent" in line] == [
        "prediction_base/test",
        "prediction/test",
    ]
    lines.clear()
    assert run("stage3_dhr") == 0
    assert not any("fitting" in line or "continuing from" in line for line in lines.messages)
    for kind in ("prediction", "prediction_base"):
        sizes = [read_mask(store.path(kind, "test", name)).shape for name in TEST]
        assert sizes == [(24, 40), (40, 24)]
        assert store.manifest(kind, "test").info["protocol"]["tags"] is False
    lines.clear()
    assert run("stage3_dhr") == 0
    assert lines.messages[-1] == "stage3_dhr: up to date"
    lines.clear()
    assert main(["status", "--dataset", "voc", "--root", "VOC2012"]) == 0
    assert all(line.split()[1] == "fresh" for line in lines.messages)

    report = json.loads(Path("reports/voc/report.json").read_text())
    assert report["metrics"]["prediction/test"]["images"] == 2
    assert report["metrics"]["prediction/test"]["miou"] is None
    assert "No true masks on test: only label-free figures are reported there." in report["notes"]
    lines.clear()
    assert main([*evaluate, str(store.folder("prediction", "test")), "--split", "test"]) == 2
    assert lines.messages[-1].startswith("error: The test split of voc has no ground truth here")

    (voc_copy / "JPEGImages" / f"{TEST[0]}.jpg").write_bytes(b"no photo")
    assert run("stage1_cam") == 2  # a test photo that cannot be read is found before the long work
    assert f"{TEST[0]}.jpg cannot be read" in lines.messages[-1]
