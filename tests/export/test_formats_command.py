"""`export` and `import mask --format`: from a recipe into a tool, and what a person corrected back into a recipe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_mask, write_mask
from dhr_lightning.data.registry import get_dataset
from dhr_lightning.export.masks import masks_of_recipe
from dhr_lightning.formats.table import FORMATS
from tests.pipeline_workspace import RECIPE, Lines, Workspace

pytest_plugins = ["tests.pipeline_fixtures"]
CLASSES = get_dataset("microworld").classes


def export(workspace: Workspace, *words: str) -> int:
    return main(["export", *RECIPE, "--root", str(workspace.data), *words])


def masks_of(workspace: Workspace, name: str) -> dict[str, np.ndarray]:
    folder = workspace.artifact(name)
    return {path.stem: read_mask(path) for path in sorted(folder.glob("*.png"))}


def read(source: Path, name: str) -> dict[str, np.ndarray]:
    return dict(FORMATS[name].read(source, CLASSES, lambda _: (128, 128)))


@pytest.mark.parametrize("name", ["coco", "labelstudio", "yolo-sem"])
def test_the_last_masks_of_every_split_are_exported(workspace: Workspace, no_lightning: None, lines: Lines, name: str):
    assert export(workspace, "--to", name, "--output", "out") == 0
    found = read(Path("out"), name)
    expected = {**masks_of(workspace, "dhr/round_01/train"), **masks_of(workspace, "dhr/val")}
    assert len(expected) == 16
    assert found.keys() == expected.keys()
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(found[image_id], mask)
    photo = workspace.data / "JPEGImages" / "val_0001.jpg"
    assert (Path("out/images") / photo.name).read_bytes() == photo.read_bytes()
    lines.clear()
    assert export(workspace, "--to", name, "--output", "out") == 0
    assert lines.messages[0].startswith("export: up to date, 16 masks")


def test_one_split_and_one_step(workspace: Workspace, no_lightning: None, lines: Lines):
    words = ["--to", "png", "--split", "train", "--step", "propagation", "--no-images"]
    assert export(workspace, *words) == 0
    target = Path("exports/microworld/png_train")
    assert not (target / "images").exists()
    for image_id, mask in masks_of(workspace, "propagation/train").items():
        np.testing.assert_array_equal(read(target, "png")[image_id], mask)
    assert export(workspace, "--to", "png", "--step", "nothing") == 2
    assert "has no step 'nothing'" in lines.messages[-1]
    assert export(workspace, "--to", "cocoo") == 2
    assert "There is no --to 'cocoo'. Known: voc-server, coco" in lines.messages[-1]


def test_an_output_with_other_things_is_kept(workspace: Workspace, no_lightning: None, lines: Lines):
    Path("out").mkdir()
    Path("out/mine.txt").write_text("x")
    assert export(workspace, "--to", "coco", "--output", "out") == 2
    assert "holds 'mine.txt', which this export does not write" in lines.messages[-1]
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


def test_a_recipe_that_has_not_run_names_the_command(empty_workspace: Workspace, lines: Lines):
    assert main(["export", "base", "--root", str(empty_workspace.data), "--to", "coco"]) == 2
    assert "base has no finished masks. Run `python -m dhr_lightning run base --root" in lines.messages[-1]


def test_a_folder_of_masks_needs_no_recipe(workspace: Workspace, no_lightning: None, lines: Lines):
    folder = workspace.artifact("dhr/val")
    assert main(["export", str(folder), "--to", "coco", "--output", "out"]) == 2
    assert "mean? Name the data whose class list they follow (--data)" in lines.messages[-1]
    Path("microworld.yaml").write_text(f"data: {{dataset: microworld, root: {workspace.data}}}\n")
    photos = str(workspace.data / "JPEGImages")
    words = ["export", str(folder), "--to", "coco", "--output", "out", "--data", "microworld.yaml", "--photos", photos]
    assert main(words) == 0
    for image_id, mask in masks_of(workspace, "dhr/val").items():
        np.testing.assert_array_equal(read(Path("out"), "coco")[image_id], mask)
    assert len(list(Path("out/images").iterdir())) == 4


def test_a_recipe_wins_over_a_folder_of_its_name(workspace: Workspace, no_lightning: None, lines: Lines):
    Path("dhr").mkdir()
    shutil.copy(workspace.artifact("dhr/val") / "val_0001.png", "dhr")
    assert export(workspace, "--to", "png", "--output", "out") == 0
    assert len(read(Path("out"), "png")) == 16
    Path("microworld.yaml").write_text(f"data: {{dataset: microworld, root: {workspace.data}}}\n")
    assert main(["export", "./dhr", "--data", "microworld.yaml", "--to", "png"]) == 0
    assert list(read(Path("dhr_png"), "png")) == ["val_0001"]


@pytest.mark.parametrize("name", ["coco", "cvat", "labelme", "labelstudio"])
def test_what_a_person_corrected_is_a_step_of_a_recipe(workspace: Workspace, lines: Lines, name: str):
    assert export(workspace, "--to", name, "--split", "train", "--output", "out") == 0
    corrected = {one: np.roll(mask, 3) for one, mask in masks_of(workspace, "dhr/round_01/train").items()}
    folder = Path("corrected")
    folder.mkdir()
    for image_id, mask in corrected.items():
        write_mask(folder / f"{image_id}.png", mask, CLASSES.palette)
    Path("microworld.yaml").write_text(f"data: {{dataset: microworld, root: {workspace.data}}}\n")
    assert main(["export", "corrected", "--data", "microworld.yaml", "--to", name, "--output", "again"]) == 0
    place = ["--root", str(workspace.data)]
    words = ["import", "mask", "again", "--format", name, "--name", "mine", *place]
    assert main(words) == 0
    kept = workspace.store.folder("imported/mine/mask", "train")
    for image_id, mask in corrected.items():
        np.testing.assert_array_equal(read_mask(kept / f"{image_id}.png"), mask)
    assert main(words) == 0  # the same source again
    recipe = ["run", "base", "--overlay", "debug.yaml", "--swap", "propagation=imported/mine", "--drop", "cam"]
    assert main([*recipe, *place, "--dry"]) == 0


def test_what_is_missing_in_an_import_is_said(workspace: Workspace, lines: Lines):
    assert export(workspace, "--to", "coco", "--split", "train", "--output", "out") == 0
    path = Path("out/annotations.json")
    content = json.loads(path.read_text())
    content["images"] = content["images"][1:]
    path.write_text(json.dumps(content))
    words = ["import", "mask", "out", "--format", "coco", "--name", "part", "--root", str(workspace.data)]
    assert main(words) == 0
    assert any("1 images are not in out and become background, first train_0001" in line for line in lines.messages)
    content["images"] = []
    path.write_text(json.dumps(content))
    assert main([*words, "--force"]) == 2
    assert "out names none of the 12 images of train, such as train_0001" in lines.messages[-1]
    assert main(["import", "mask", "gone", "--format", "coco", "--root", str(workspace.data)]) == 2
    assert lines.messages[-1] == "error: There is no file or folder gone."


def test_what_segment_wrote_is_exported_with_its_classes(workspace: Workspace, lines: Lines):
    photos = Path("new")
    photos.mkdir()
    for path in sorted((workspace.data / "JPEGImages").glob("val_*.jpg")):
        shutil.copy(path, photos / f"new_{path.name}")
    place = ["--root", str(workspace.data)]
    assert main(["segment", "new", "--from", "dhr+uss=patches", "--output", "found", *place]) == 0
    assert main(["export", "found", "--to", "labelme", "--photos", "new", "--output", "out"]) == 0
    found = read(Path("out"), "labelme")
    assert len(found) == 4
    for image_id, mask in found.items():
        np.testing.assert_array_equal(read_mask(Path("found/masks") / f"{image_id}.png"), mask)
        with Image.open(Path("out") / f"{image_id}.jpg") as photo:
            assert photo.size == mask.shape[::-1]


def test_a_baseline_behind_the_final_segmenter_is_not_what_is_exported(workspace: Workspace):
    plan = workspace.plan()
    last = [step for step in plan.steps if step.name != "baseline"]
    plan = replace(plan, steps=[*last, plan["baseline"]])
    found = masks_of_recipe(plan, None, None)
    expected = {**masks_of(workspace, "dhr/round_01/train"), **masks_of(workspace, "dhr/val")}
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(found.read(image_id), mask)


def test_a_trainer_gets_pseudo_masks_to_train_on_and_true_ones_to_evaluate_on(
    workspace: Workspace, no_lightning: None, lines: Lines
):
    assert export(workspace, "--to", "trainer", "--output", "out") == 0
    out = Path("out")
    for image_id, mask in masks_of(workspace, "dhr/round_01/train").items():
        with Image.open(out / "train/masks" / f"{image_id}.png") as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.array(image), mask)
        photo = workspace.data / "JPEGImages" / f"{image_id}.jpg"
        assert (out / "train/images" / photo.name).read_bytes() == photo.read_bytes()
    records = get_dataset("microworld").read(workspace.data, "val", CLASSES)
    truth = {record.id: read_mask(record.gt_mask) for record in records}
    assert len(truth) == 4
    for image_id, mask in truth.items():
        np.testing.assert_array_equal(read_mask(out / "val/masks" / f"{image_id}.png"), mask)
    assert (out / "classes.txt").read_text().splitlines() == list(CLASSES.names)
    assert json.loads((out / "id2label.json").read_text())["1"] == CLASSES.names[1]
    rows = [json.loads(line) for line in (out / "val/metadata.jsonl").read_text().splitlines()]
    assert {row["label_file_name"] for row in rows} == {f"masks/{one}.png" for one in truth}
    assert any("val: 4 images with true masks, to evaluate on" in line for line in lines.messages)
    lines.clear()
    assert export(workspace, "--to", "trainer", "--no-images", "--output", "other") == 2
    assert "Trainers read photos, but that of" in lines.messages[-1]
    assert not Path("other").exists()


def test_polygons_of_coco_say_what_they_lose(workspace: Workspace, no_lightning: None, lines: Lines):
    pytest.importorskip("cv2")
    assert export(workspace, "--to", "coco-polygons", "--split", "val", "--output", "out") == 0
    assert any("polygons have no holes: " in line for line in lines.messages)
    for image_id, mask in masks_of(workspace, "dhr/val").items():
        assert read(Path("out"), "coco-polygons")[image_id].shape == mask.shape
