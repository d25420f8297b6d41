"""Which images each split brings to training, prediction and evaluation, from files to artifacts."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.pipeline.command import split_request, stage_main
from dhr_lightning.pipeline.plan import make_plan
from tests.pipeline_workspace import STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
VAL = ["2007_000005", "2007_000006"]
TEST = ["test_1", "test_2"]
WORDS = ["--data", "voc", "--root", "VOC2012", "--swap", "uss=patches", "--overlay", "debug.yaml"]
SHORT = ["--cam.trainer.max_epochs=1", "--baseline.trainer.max_epochs=1", "--dhr.trainer.max_epochs=1"]
REPORT = Path("reports/voc/dhr+uss=patches/report.json")


def run(name: str) -> int:
    return stage_main(STAGES[name], [*WORDS, *SHORT])


def places() -> dict[str, str]:
    """Address of the masks and predictions of each step."""
    plan = make_plan(split_request([*WORDS, *SHORT]))
    kinds = {"propagation": "mask", "baseline": "prediction", "dhr": "prediction"}
    return {step: plan[step].address(kind) for step, kind in kinds.items()}


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
    store, place = ArtifactStore("artifacts", "voc"), places()
    assert "voc/train: 1 images without tags are dropped (data.untagged: drop)" in lines.messages
    assert not any("voc/val" in line for line in lines.messages)
    assert store.manifest(place["propagation"], "train").count == 3
    for kind in (place["baseline"], place["dhr"]):
        assert [store.path(kind, "val", name).is_file() for name in VAL] == [True, True]
    evaluate = ["evaluate", "--data", "voc", "--root", "VOC2012", "--json", "scores.json", "--pred"]
    assert main([*evaluate, str(store.folder(place["dhr"], "val"))]) == 0
    scored = json.loads(Path("scores.json").read_text())
    reported = json.loads(REPORT.read_text())["metrics"]["dhr/val"]
    assert scored["images"] == reported["images"] == 2
    assert scored["miou"] == reported["miou"]
    assert {split for _, split in store.addresses()} == {"train", "val"}

    lines.clear()
    add_test_split(voc_copy)
    assert main(["status", "--data", "voc", "--root", "VOC2012"]) == 0
    rows = [line.split() for line in lines.messages if "absent" in line]
    assert [row[:2] for row in rows] == [["baseline", f"{place['baseline']}/test"], ["dhr", f"{place['dhr']}/test"]]
    lines.clear()
    assert run("stage3_dhr") == 0
    assert not any("fitting" in line or "continuing from" in line for line in lines.messages)
    for kind in (place["baseline"], place["dhr"]):
        sizes = [read_mask(store.path(kind, "test", name)).shape for name in TEST]
        assert sizes == [(24, 40), (40, 24)]
        assert store.manifest(kind, "test").info["protocol"]["tags"] is False
    lines.clear()
    assert run("stage3_dhr") == 0
    assert lines.messages[-1] == "stage3_dhr: up to date"
    lines.clear()
    assert main(["status", "--data", "voc", "--root", "VOC2012"]) == 0
    assert lines.messages[0] == "recipe dhr+uss=patches on voc"
    assert all(line.split()[2] == "fresh" for line in lines.messages[1:])

    report = json.loads(REPORT.read_text())
    assert report["metrics"]["dhr/test"]["images"] == 2
    assert report["metrics"]["dhr/test"]["miou"] is None
    assert "No true masks on test: only label-free figures are reported there." in report["notes"]
    lines.clear()
    assert main([*evaluate, str(store.folder(place["dhr"], "test")), "--split", "test"]) == 2
    assert lines.messages[-1].startswith("error: The test split of voc has no ground truth here")

    (voc_copy / "JPEGImages" / f"{TEST[0]}.jpg").write_bytes(b"no photo")
    assert run("stage1_cam") == 2  # a test photo that cannot be read is found before the long work
    assert f"{TEST[0]}.jpg cannot be read" in lines.messages[-1]
