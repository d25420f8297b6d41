"""The command `evaluate`: any folder of masks against the truth of a split, with its protocol in words."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.errors import DataError, MaskError
from dhr_lightning.evaluation.folder import evaluate_folder
from dhr_lightning.protocol import EvaluationProtocol
from dhr_lightning.provenance.views import DataView
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
VAL = ("2007_000005", "2007_000006")


def save(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(path)


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


class Case:
    """A dataset, a folder of predictions that are the truth shifted by two pixels, and the command."""

    def __init__(self, root: Path, pred: Path) -> None:
        self.root, self.pred = root, pred
        pred.mkdir()
        for image_id in VAL:
            save(pred / f"{image_id}.png", np.roll(np.where(self.truth(image_id) == 255, 0, self.truth(image_id)), 2))

    def truth(self, image_id: str) -> np.ndarray:
        return load(self.root / "SegmentationClass" / f"{image_id}.png")

    def add_empty(self, image_id: str) -> None:
        """A further image of the split whose truth is background only."""
        source = self.root / "JPEGImages" / f"{VAL[0]}.jpg"
        shutil.copy(source, self.root / "JPEGImages" / f"{image_id}.jpg")
        (self.root / "Annotations" / f"{image_id}.xml").write_text("<annotation></annotation>\n")
        save(self.root / "SegmentationClass" / f"{image_id}.png", np.zeros_like(self.truth(VAL[0])))
        with (self.root / "ImageSets" / "Segmentation" / "val.txt").open("a") as stream:
            stream.write(f"{image_id}\n")

    def run(self, *options: str) -> int:
        paths = ["--pred", str(self.pred), "--root", str(self.root), "--json", str(self.pred / "scores.json")]
        return main(["evaluate", "--data", "voc", *paths, *options])

    def result(self) -> dict[str, Any]:
        return json.loads((self.pred / "scores.json").read_text())


@pytest.fixture
def case(voc_copy: Path, tmp_path: Path) -> Case:
    return Case(voc_copy, tmp_path / "pred")


def slow_scores(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The published definition, one class after the other over sets of pixels."""
    iou, fpr, fnr = [], [], []
    for value in range(21):
        predicted = true = both = 0
        for answer, truth in pairs:
            scored = truth != 255
            predicted += ((answer == value) & scored).sum()
            true += (truth == value).sum()
            both += ((answer == value) & (truth == value)).sum()
        union = predicted + true - both
        if union:
            iou.append(both / union)
            fpr.append((predicted - both) / union)
            fnr.append((true - both) / union)
    return {"miou": np.mean(iou), "fpr": np.mean(fpr), "fnr": np.mean(fnr)}


def test_scores_agree_with_the_definition(case: Case, lines: Lines):
    assert case.run() == 0
    result = case.result()
    for name, value in slow_scores([(load(case.pred / f"{name}.png"), case.truth(name)) for name in VAL]).items():
        assert result[name] == pytest.approx(value, abs=1e-12), name
    assert 0 < result["miou"] < 1
    assert 0 < result["mboundary_iou"] < result["miou"]
    assert result["iou"]["sheep"] is None
    assert tuple(result["iou"]) == tuple(result["boundary_iou"]) == VOC_CLASSES
    assert (result["images"], result["missing"], result["ignore_index"]) == (2, 0, 255)
    assert lines.messages[-1] == (
        "Protocol: voc, split val: 2 images; pixels whose truth is 255 are not scored; a pixel without a predicted "
        "class counts as a miss; one matrix of integer pixel counts over the split, mean over 21 classes including "
        "background (absent ones left out); masks as given, TTA and CRF unknown."
    )


def test_the_truth_scores_one(case: Case):
    case.pred = case.root / "SegmentationClass"
    assert case.run("--split", "train") == 0
    result = case.result()
    assert result["miou"] == result["mboundary_iou"] == result["pixel_accuracy"] == 1
    assert result["fpr"] == result["fnr"] == result["vanished_tag_rate"] == 0


def test_missing_predictions_stop_or_count_as_background_loudly(case: Case, lines: Lines):
    (case.pred / f"{VAL[1]}.png").unlink()
    assert case.run() == 2
    assert "1 of 2 predictions are missing" in lines.messages[-1]
    assert f"first {VAL[1]}.png (the folder holds, for example, {VAL[0]}.png)" in lines.messages[-1]
    assert not (case.pred / "scores.json").exists()

    assert case.run("--missing", "background") == 0
    assert "WARNING: 1 predictions are missing and count as background." in lines.messages
    pairs = [
        (load(case.pred / f"{VAL[0]}.png"), case.truth(VAL[0])),
        (np.zeros_like(case.truth(VAL[1])), case.truth(VAL[1])),
    ]
    result = case.result()
    assert result["miou"] == pytest.approx(slow_scores(pairs)["miou"])
    assert (result["images"], result["missing"]) == (2, 1)
    assert "1 missing predictions counted as background" in result["protocol"]


def test_compat_leaves_out_what_the_published_evaluator_leaves_out(case: Case, lines: Lines):
    case.add_empty("2007_000007")
    save(case.pred / "2007_000007.png", np.full_like(case.truth(VAL[0]), 3))
    (case.pred / f"{VAL[1]}.png").unlink()
    assert case.run("--compat", "dhr") == 0
    result = case.result()
    pairs = [(load(case.pred / f"{VAL[0]}.png"), case.truth(VAL[0]))]
    assert result["miou"] == pytest.approx(slow_scores(pairs)["miou"])
    assert result["skipped"] == {"without_foreground": 1, "without_prediction": 1}
    assert (result["images"], result["compat"]) == (1, "dhr")
    assert "compat dhr: 1 images without foreground and 1 without a prediction left out" in lines.messages[-1]
    assert "WARNING: 2 images are left out (compat dhr)." in lines.messages
    assert case.run("--missing", "background") == 0
    assert case.result()["images"] == 3


@pytest.mark.parametrize(("name", "split", "images"), [("coco", "val", 1), ("coco", "train", 0), ("voc", "val", 0)])
def test_compat_counts_empty_images_on_the_validation_split_of_coco(tmp_path: Path, name, split, images):
    info = one_image(tmp_path, name, ("background", "cat"), np.zeros((4, 4)))
    save(tmp_path / "a.png", np.zeros((4, 4)))
    assert evaluate_folder(tmp_path, info, tmp_path, split, compat="dhr")["images"] == images
    assert evaluate_folder(tmp_path, info, tmp_path, split)["images"] == 1


def one_image(folder: Path, name: str, classes: tuple[str, ...], truth: np.ndarray) -> DatasetInfo:
    (folder / "truth").mkdir()
    save(folder / "truth" / "a.png", truth)
    tags = tuple(sorted({*np.unique(truth).tolist()} - {0, 255}))
    record = Record("a", folder / "a.jpg", tags, folder / "truth" / "a.png")
    has_background = classes[0] == "background"
    return DatasetInfo(name, ClassSet(classes, has_background), lambda root, split, classes: [record], folder)


def test_without_background_class_zero_is_foreground_and_nothing_can_be_filled_in(tmp_path: Path):
    info = one_image(tmp_path, "ade", ("wall", "sky"), np.zeros((4, 4)))
    save(tmp_path / "a.png", np.ones((4, 4)))
    result = evaluate_folder(tmp_path, info, tmp_path, "val", compat="dhr")
    assert result["images"] == 1
    assert result["iou"] == {"wall": 0.0, "sky": 0.0}
    with pytest.raises(DataError, match="ade has no background class"):
        evaluate_folder(tmp_path, info, tmp_path, "val", missing="background")


def test_bad_masks_name_the_file(case: Case, lines: Lines):
    path = case.pred / f"{VAL[0]}.png"
    save(path, np.zeros((5, 7)))
    assert case.run() == 2
    assert f"{path} is 7x5 pixels, but its image is " in lines.messages[-1]
    save(path, np.full_like(case.truth(VAL[0]), 77))
    assert case.run() == 2
    assert f"{path} holds values outside the 21 classes and 255: 77 (" in lines.messages[-1]
    Image.fromarray(case.truth(VAL[0])).convert("RGB").save(path)
    assert case.run() == 2
    assert str(path) in lines.messages[-1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--missing", "ignore"], "--missing to be error or background, but got 'ignore'"),
        (["--compat", "voc"], "--compat to be none or dhr, but got 'voc'"),
        (["--compat", "dhr", "--missing", "background"], "drop --missing background"),
        (["--split", "test"], "test"),
    ],
)
def test_bad_options_are_refused(case: Case, lines: Lines, options: list[str], reason: str):
    assert case.run(*options) == 2
    assert reason in lines.messages[-1]


def test_a_folder_that_is_not_there_is_said(case: Case, lines: Lines):
    case.pred = case.pred / "nowhere"
    assert case.run() == 2
    assert "(there is no such folder)" in lines.messages[-1]


def test_the_recorded_protocol_is_shown(case: Case):
    protocol = EvaluationProtocol((1.0, 0.5), crf={"iterations": 10}, backend="lattice")
    manifest = Manifest.create("dhr/prediction", "voc", "val", ids=VAL, settings={})
    manifest.with_info(protocol=protocol.record()).save(case.pred / "manifest.json")
    assert case.run() == 0
    assert case.result()["test_time"] == protocol.record()
    assert case.result()["protocol"].endswith(protocol.describe())
    (case.pred / "manifest.json").write_text("{}")
    assert case.run() == 0
    assert case.result()["test_time"] is None
    assert case.result()["protocol"].endswith("TTA and CRF unknown")


def test_progress_wraps_the_images(case: Case, voc_classes: ClassSet):
    from dhr_lightning.data.registry import get_dataset

    seen: list[tuple[str, int]] = []
    evaluate_folder(
        case.pred,
        get_dataset("voc"),
        case.root,
        "val",
        progress=lambda ids, title: [seen.append((title, len(ids))), iter(ids)][1],
    )
    assert seen == [("evaluate val", 2)]


def test_truth_of_0_and_255_is_no_truth(case: Case, lines: Lines):
    """Binary masks as drawing tools write them: 255 would not be scored, and any prediction would be perfect."""
    for image_id in VAL:
        save(case.root / "SegmentationClass" / f"{image_id}.png", np.where(case.truth(image_id) > 0, 255, 0))
    assert case.run() == 2
    assert "None of the 2 true masks of val shows any of the 20 classes, though the tags of 2" in lines.messages[-1]
    assert not (case.pred / "scores.json").exists()


def test_such_truth_stops_a_run_before_its_first_step(case: Case, lines: Lines, tmp_path: Path):
    for image_id in VAL:
        save(case.root / "SegmentationClass" / f"{image_id}.png", np.where(case.truth(image_id) > 0, 255, 0))
    view = DataView({"dataset": "voc", "root": str(case.root)})
    records = {split: view.records(split) for split in ("train", "val")}
    for _ in range(2):  # it is not remembered as checked
        with pytest.raises(MaskError, match=r"None of the 2 true masks of val shows any of the 20 classes"):
            check_dataset(tmp_path / "kept", records, view.info.classes)
    assert not (tmp_path / "kept").exists()
