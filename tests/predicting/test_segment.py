"""`segment`: the masks of the recipe's own predictions, resumable, and nothing is lost in silence."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dhr_lightning as dl
from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.errors import CheckpointError, ConfigError, DataError
from dhr_lightning.methods.inference import Inference
from dhr_lightning.predicting.model import Model
from dhr_lightning.predicting.segment import Job
from dhr_lightning.predicting.segment import segment as segment_photos
from tests.pipeline_workspace import REPOSITORY, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
FROZEN = ("run", "frozen", "--overlay", "debug.yaml")


def photos(data: Path, split: str = "val") -> list[Path]:
    return sorted(path for path in (data / "JPEGImages").iterdir() if path.stem.startswith(split))


def predicted(workspace: Path, method: str) -> dict[str, np.ndarray]:
    (folder,) = (workspace / "artifacts").glob(f"microworld/{method}/*/prediction/val")
    return {path.stem: read_mask(path) for path in sorted(folder.glob("*.png"))}


def opened(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def segment(workspace: Workspace, *words: str) -> int:
    return main(["segment", *words, "--from", "dhr+uss=patches", "--root", str(workspace.data), "--output", "out"])


def test_a_network_predicts_as_its_recipe_did(workspace: Workspace, lines: Lines):
    assert segment(workspace, *map(str, photos(workspace.data))) == 0
    expected = predicted(workspace.folder, "dhr")
    assert len(expected) == 4
    for name, mask in expected.items():
        np.testing.assert_array_equal(read_mask(Path("out/masks") / f"{name}.png"), mask)
    rows = table("out/predictions.csv")
    for name, mask in expected.items():
        own = {row["class"]: int(row["pixels"]) for row in rows if row["image"] == name}
        assert sum(own.values()) == mask.size
        assert len(own) == len(np.unique(mask))
    confidence = opened(f"out/confidence/{name}.png")
    assert (confidence.dtype, confidence.shape) == (np.uint16, mask.shape)
    assert confidence.min() > 65535 / 12  # the largest of 11 probabilities
    assert opened(f"out/overlays/{name}.jpg").shape == (*mask.shape, 3)
    assert json.loads(Path("out/segment.json").read_text())["weights"]["supervision"]


def test_frozen_features_and_the_gate_are_computed_as_in_the_recipe(frozen: Path, debug_data: Path):
    model = dl.load("frozen", root=str(debug_data), workspace=str(frozen))
    assert model.title == "frozen (segmenter_crf)"
    folders = [path.parent for path in (frozen / "artifacts").glob("microworld/light/*/prediction/val/manifest.json")]
    assert len(folders) == 2
    for step in ("segmenter", "segmenter_crf"):
        steps = [path for path in folders if json.loads((path / "manifest.json").read_text())["info"]["step"] == step]
        masks = {path.stem: read_mask(path) for path in steps[0].glob("*.png")}
        model = _load_step(frozen, debug_data, step)
        for path in photos(debug_data):
            np.testing.assert_array_equal(model.predict(path).mask, masks[path.stem])


def test_the_report_says_whose_features_it_stands_on(frozen: Path):
    report = json.loads((frozen / "reports/microworld/frozen/report.json").read_text())
    (note,) = (one for one in report["notes"] if one.startswith("uss: features of"))
    assert note == "uss: features of test_vit, supervised by image labels (ImageNet-1k), licence: apache-2.0."


def test_features_of_random_weights_cannot_be_computed_again(debug_data: Path, tmp_path: Path, lines: Lines):
    place = ["--root", str(debug_data), "--workspace", str(tmp_path)]
    assert main([*FROZEN, *place, "--until", "segmenter"]) == 0
    with pytest.raises(CheckpointError, match="features of a backbone with random weights, which nobody kept"):
        dl.load("frozen", root=str(debug_data), workspace=str(tmp_path), overlays=("debug.yaml",))


def _load_step(workspace: Path, data: Path, step: str) -> Model:
    from dhr_lightning.pipeline.request import Request
    from dhr_lightning.predicting.model import build
    from dhr_lightning.predicting.sources import find_source

    return build(find_source("frozen", Request(root=str(data), workspace=str(workspace)), step=step))


def test_settings_reach_a_segmenter_on_features(frozen: Path, debug_data: Path):
    place = {"root": str(debug_data), "workspace": str(frozen)}
    path = photos(debug_data)[0]
    plain, mirrored = (dl.load("frozen", **place, settings=dl.Settings(flip=flip, crf=False)) for flip in (False, True))
    assert not np.array_equal(plain.predict(path).confidence, mirrored.predict(path).confidence)
    with pytest.raises(ConfigError, match="at one size of the photo"):
        dl.load("frozen", **place, settings=dl.Settings(scales=(0.5, 1.0)))


def test_a_checkpoint_a_version_and_a_fit_are_the_same_model(workspace: Workspace):
    fit = workspace.run_folder("dhr")
    sources = [fit, fit / "version_0", fit / "version_0" / "checkpoints" / "last.ckpt"]
    path = photos(workspace.data)[0]
    expected = predicted(workspace.folder, "dhr")[path.stem]
    for source in sources:
        np.testing.assert_array_equal(dl.load(source).predict(path).mask, expected)


def test_every_form_of_an_image_is_the_same_image(workspace: Workspace):
    model = dl.load(workspace.run_folder("dhr"))
    path = photos(workspace.data)[0]
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    forms = [path, str(path), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    found = model.predict(forms)
    assert [one.name for one in found[:3]] == [path.stem, path.stem, "image"]
    for one in found[1:]:
        np.testing.assert_array_equal(one.mask, found[0].mask)
        np.testing.assert_array_equal(one.confidence, found[0].confidence)
    with pytest.raises(DataError, match=r"but got \(4, 4, 3\) float64"):
        model.predict(np.zeros((4, 4, 3)))


def test_an_opened_photo_is_turned_and_refused_as_its_file_is(workspace: Workspace, tmp_path: Path):
    model, exif = dl.load(workspace.run_folder("dhr")), Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos(workspace.data)[0]) as image:
        image.convert("RGB").crop((0, 0, 100, 60)).save(tmp_path / "lying.png", exif=exif)
    with Image.open(tmp_path / "lying.png") as image:
        found = model.predict(image)
    assert found.mask.shape == (100, 60)
    assert found.name == "lying"
    np.testing.assert_array_equal(found.mask, model.predict(tmp_path / "lying.png").mask)
    with pytest.raises(DataError, match="pixels of more than 8 bits"):
        model.predict(Image.fromarray(np.zeros((8, 8), np.uint16)))


def test_order_and_neighbours_change_nothing(workspace: Workspace):
    model = dl.load(workspace.run_folder("dhr"))
    paths = photos(workspace.data)
    forward, backward = model.predict(paths), model.predict(paths[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one.confidence, other.confidence)


def test_tags_restrict_the_classes_of_their_photo_alone(workspace: Workspace, lines: Lines):
    paths = photos(workspace.data)
    Path("tags.csv").write_text(f"image,tag\n{paths[0].name},dog\n")
    assert segment(workspace, *map(str, paths), "--tags", "tags.csv") == 0
    model = dl.load(workspace.run_folder("dhr"))
    masks = {path.stem: read_mask(Path("out/masks") / f"{path.stem}.png") for path in paths}
    assert set(np.unique(masks[paths[0].stem])) <= {0, model.classes.index("dog")}
    for path in paths[1:]:
        np.testing.assert_array_equal(masks[path.stem], model.predict(path).mask)
    with pytest.raises(ConfigError, match="'zebra' is no class of"):
        model.predict(paths[0], tags=["zebra"])
    Path("tags.csv").write_text("image,tag\nother.jpg,dog\n")
    assert segment(workspace, *map(str, paths), "--tags", "tags.csv") == 2
    assert "names none of the 4 photos, first 'other.jpg'" in lines.messages[-1]


def test_it_continues_and_counts_what_was_there(workspace: Workspace, lines: Lines, monkeypatch: pytest.MonkeyPatch):
    paths = photos(workspace.data)
    assert segment(workspace, *map(str, paths)) == 0
    whole = Path("out/predictions.csv").read_text()
    Path("out/predictions.csv").unlink()
    Path(f"out/masks/{paths[1].stem}.png").unlink()  # the mask is written last: this photo was not finished
    asked = []
    predict = Model.predict

    def spy(self: Model, image: Path, **options: object) -> object:
        asked.append(image)
        return predict(self, image, **options)

    monkeypatch.setattr(Model, "predict", spy)
    assert segment(workspace, *map(str, paths)) == 0
    assert asked == [paths[1]]
    assert Path("out/predictions.csv").read_text() == whole


def test_a_photo_that_was_replaced_is_predicted_again(workspace: Workspace):
    first, second = photos(workspace.data)[:2]
    shutil.copy2(first, "photo.jpg")
    assert segment(workspace, "photo.jpg") == 0
    before = read_mask(Path("out/masks/photo.png"))
    shutil.copy2(second, "new.jpg")
    Path("new.jpg").replace("photo.jpg")  # older by its own time, put there now
    assert segment(workspace, "photo.jpg") == 0
    expected = dl.load(workspace.run_folder("dhr")).predict(second).mask
    np.testing.assert_array_equal(read_mask(Path("out/masks/photo.png")), expected)
    assert not np.array_equal(before, expected)


def test_a_broken_photo_is_named_and_the_others_are_predicted(workspace: Workspace, lines: Lines):
    folder = Path("photos/sub")
    folder.mkdir(parents=True)
    shutil.copy(photos(workspace.data)[0], folder / "good.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    (folder / "scan.dcm").write_bytes(b"DICM")
    assert segment(workspace, "photos") == 1
    assert Path("out/masks/sub/good.png").is_file()
    assert [row["image"] for row in table("out/failed.csv")] == ["sub/broken"]
    assert any("scan.dcm is left out: medical" in line for line in lines.messages)
    shutil.copy(photos(workspace.data)[1], folder / "broken.jpg")
    assert segment(workspace, "photos") == 0
    assert not Path("out/failed.csv").exists()


def test_an_output_of_other_things_or_of_another_model_is_kept(workspace: Workspace, lines: Lines):
    path = str(photos(workspace.data)[0])
    Path("out").mkdir()
    Path("out/holiday.txt").write_text("mine")
    assert segment(workspace, path) == 2
    assert "out holds other things, such as holiday.txt. Choose an empty --output." in lines.messages[-1]
    Path("out/holiday.txt").unlink()
    assert segment(workspace, path) == 0
    assert segment(workspace, path, "--no-flip") == 2
    assert "predictions of another model or with other settings or tags (dhr+uss=patches (dhr))" in lines.messages[-1]
    assert segment(workspace, path, "--no-flip", "--force") == 0
    Path("tags.csv").write_text(f"image,tag\n{Path(path).name},dog\n")
    assert segment(workspace, path, "--no-flip", "--tags", "tags.csv") == 2


def test_the_protocol_of_a_recipe_is_part_of_what_an_output_holds(workspace: Workspace):
    """Two steps may share their weights and differ in the CRF alone."""
    path = photos(workspace.data)[0]
    job, model = Job({"a": path}, Path("out"), {}), dl.load(workspace.run_folder("dhr"))
    assert segment_photos(model, job) == 0
    model.engine.inference = Inference((1.0,), test_crf={"iterations": 1})
    with pytest.raises(ConfigError, match="with other settings"):
        segment_photos(model, job)


def test_tiles_of_a_large_photo_agree_with_the_whole_inside(workspace: Workspace):
    array = np.asarray(Image.open(photos(workspace.data)[0]).convert("RGB"))
    large = np.tile(array, (3, 4, 1))
    tiled = dl.load(workspace.run_folder("dhr"), settings=dl.Settings(tile=256)).predict(large)
    whole = dl.load(workspace.run_folder("dhr"), settings=dl.Settings(tile=0)).predict(large)
    assert tiled.mask.shape == large.shape[:2]
    assert (tiled.mask == whole.mask).mean() > 0.8
    with pytest.raises(ConfigError, match="tiles of 64 pixels or more"):
        dl.Settings(tile=8)


def test_a_photo_that_memory_has_no_room_for_comes_in_smaller_tiles_once_and_is_recorded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
):
    array = np.tile(np.asarray(Image.open(photos(workspace.data)[0]).convert("RGB")), (2, 2, 1))
    Image.fromarray(array).save("large.png")
    model = dl.load(workspace.run_folder("dhr"))
    real, sizes, room = model.engine.probability, [], 200 * 200

    def limited(batch: Any) -> Any:
        sizes.append(tuple(batch["pixels"].shape[-2:]))
        if sizes[-1][0] * sizes[-1][1] > room:
            raise torch.cuda.OutOfMemoryError
        return real(batch)

    monkeypatch.setattr(model.engine, "probability", limited)
    assert segment_photos(model, Job({"large": Path("large.png")}, Path("out"), {})) == 0
    assert sizes[0] == (256, 256)
    assert set(sizes[1:]) == {(128, 128)}
    assert Path("out/tiled.tsv").read_text() == "large\t128\n"
    tiled = dl.load(workspace.run_folder("dhr"), settings=dl.Settings(tile=128)).predict("large.png")
    assert np.array_equal(read_mask(Path("out/masks/large.png")), tiled.mask)
    assert tiled.tile is None  # it was asked for
    room = 100
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model.predict("large.png")


def test_what_is_no_finished_segmenter_is_refused(workspace: Workspace, lines: Lines):
    cam = workspace.run_folder("cam") / "version_0" / "checkpoints" / "last.ckpt"
    with pytest.raises(CheckpointError, match="the checkpoint of CAMTask, which is no segmenter"):
        dl.load(cam)
    with pytest.raises(CheckpointError, match=r"There is no model at gone\.ckpt"):
        dl.load("gone.ckpt")


def test_a_recipe_that_has_not_run_names_the_command(empty_workspace: Workspace, lines: Lines):
    words = ["segment", str(photos(empty_workspace.data)[0]), "--from", "dhr", "--root", str(empty_workspace.data)]
    assert main(words) == 2
    command = f"python -m dhr_lightning run dhr --root {empty_workspace.data}"
    assert lines.messages[-1] == f"error: dhr has not been trained to its end. Run `{command}` first."


def test_coco_annotations_decode_to_the_mask(workspace: Workspace):
    from pycocotools import mask as runs

    prediction = dl.load(workspace.run_folder("dhr")).predict(photos(workspace.data)[0])
    again = np.zeros_like(prediction.mask)
    for one in prediction.to_coco():
        again[runs.decode(one["segmentation"]) == 1] = one["category_id"]
    np.testing.assert_array_equal(again, prediction.mask)


def test_images_are_normalised_as_the_weights_learnt_them(workspace: Workspace, tmp_path: Path):
    """Weights may come with colours of their own, which the checkpoint keeps."""
    source = workspace.run_folder("dhr") / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["card"] = {**checkpoint["card"], "mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7)}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    path = photos(workspace.data)[0]
    model, plain = dl.load(tmp_path / "other.ckpt"), dl.load(source)
    assert model.engine.task.card.mean == (0.1, 0.2, 0.3)
    assert not np.array_equal(model.predict(path).confidence, plain.predict(path).confidence)


def test_the_package_gives_its_api_on_use_and_imports_no_torch_before():
    script = (
        "import sys, dhr_lightning as dl; assert 'torch' not in sys.modules; "
        "assert dl.ops.rebalance and dl.load and dl.run and dl.Settings and dl.Model and dl.Prediction; dl.__version__"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dl.nothing
