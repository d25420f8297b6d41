"""Folders without any mask through all stages, and stages that start from imported artifacts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.files import read_cam, read_features, read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.pipeline import stage_main
from tests.data.datasets.folder_samples import write_photo
from tests.importing.test_import_pickle import save
from tests.pipeline_workspace import STAGES, Lines

pytest_plugins = ["tests.pipeline_fixtures"]
TAGS = (["cat"], ["dog"], ["cat", "dog"])
IDS = tuple(f"sub/img {k}" for k in range(8))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of photos, without masks and without validation images, and others' files."""
    monkeypatch.chdir(tmp_path)
    for index, one in enumerate(IDS):
        tags = TAGS[index % 3]
        write_photo(Path("photos/images", f"{one}.jpg"), tags, size=(48, 40), orientation=6 * (index == 1))
        size = (48, 40) if index == 1 else (40, 48)
        mask = np.zeros(size, np.uint8)
        for tag in tags:
            mask[2:10, 2:10] = 1 + ("cat", "dog").index(tag)
        Path("theirs/sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(Path("theirs", f"{one}.png"))
    rows = "".join(f'{one},"{";".join(TAGS[k % 3])}"\n' for k, one in enumerate(IDS))
    Path("photos/tags.csv").write_text(f"image,tags\n{rows}")
    options = "{holdout: 0, classes: [cat, dog]}"
    Path("own.yaml").write_text(f"data: {{dataset: folder, root: photos, options: {options}}}\n")
    return tmp_path


def stage(name: str, *options: str, overlays: tuple[str, ...] = ("debug.yaml",)) -> int:
    """Run a stage on the folder; `debug.yaml` sizes the built-in dataset, so its options are taken back."""
    own = ["--data.options", "{holdout: 0, classes: [cat, dog]}"]
    if name == "stage1_cam":
        own += ["--model.init_args.background", "0.8"]  # a network that has learnt next to nothing finds no background
    return stage_main(STAGES[name], ["--dataset", "own.yaml", *options, "--overlay", *overlays, "--", *own])


def bring(kind: str, source: str = "theirs", *options: str) -> int:
    return main(["import", kind, source, "--dataset", "own.yaml", *options])


@pytest.fixture
def store(place: Path) -> ArtifactStore:
    return ArtifactStore("artifacts", "photos")


@pytest.mark.slow
def test_all_stages_run_without_any_mask_or_validation_image(place: Path, store: ArtifactStore, lines: Lines):
    assert [
        stage(name, "--config", "uss=stage2_filterbank.yaml") if "2" in name else stage(name) for name in STAGES
    ] == [0, 0, 0]
    found = dict.fromkeys(store.kinds())
    assert {("dhr_mask/round_01", "train"), ("prediction", "val"), ("mars_mask", "train")} <= found.keys()
    assert store.manifest("prediction", "val").count == 0
    assert all(read_mask(store.path("dhr_mask/round_01", "train", one)).size == 48 * 40 for one in IDS)
    assert read_mask(store.path("base_mask", "train", IDS[1])).shape == (48, 40)  # turned as its EXIF tag says
    report = json.loads(Path("reports/photos/report.json").read_text())
    assert "No true masks on train: only label-free figures are reported there." in report["notes"]
    lines.clear()
    assert stage("stage3_dhr") == 0
    assert lines.messages == ["stage3_dhr: up to date"]

    Image.fromarray(np.full((48, 40), 1, np.uint8)).save("theirs/one.png")
    assert bring("base_mask") == 2
    assert "was made by a stage. Replace it with --force." in lines.messages[-1]
    assert bring("base_mask", "theirs", "--force") == 0
    lines.clear()
    assert stage("stage1_cam") == 0
    assert lines.messages == ["stage1_cam: up to date"]  # its CAMs and network stay, and others' masks are kept
    assert np.array_equal(
        read_mask(store.path("base_mask", "train", IDS[0])), np.array(Image.open(f"theirs/{IDS[0]}.png"))
    )


def test_stage_3_starts_from_imported_masks_alone(
    place: Path, store: ArtifactStore, lines: Lines, no_lightning: None, monkeypatch: pytest.MonkeyPatch
):
    assert bring("base_mask") == 0
    assert "next: stage 2, then stage 3 with --overlay imported.yaml" in lines.text
    lines.clear()
    assert stage("stage1_cam") == 0
    (line, last) = lines.messages
    assert line.startswith("cam: left out, base_mask/train was imported from ")
    assert last == "stage1_cam: up to date"
    assert stage("stage3_dhr") == 2
    assert lines.messages[-1].endswith(
        "Run `make stage1 DATASET=own.yaml` for it, or add --overlay imported.yaml to start without it."
    )
    with pytest.raises(AssertionError, match="ran fit"):
        stage("stage3_dhr", overlays=("debug.yaml", "imported.yaml"))
    with pytest.raises(AssertionError, match="ran fit"):
        stage("stage1_cam", "--force")


def test_later_masks_leave_out_the_steps_before(place: Path, store: ArtifactStore, lines: Lines, no_lightning: None):
    assert bring("mars_mask") == 0
    assert stage("stage3_dhr", overlays=("debug.yaml", "imported.yaml")) == 2
    assert "wss: left out, base_mask/train is absent, and mars_mask/train was imported" in lines.messages
    assert "dhr needs uss/train, which is absent" in lines.messages[-1]
    for one in IDS:
        Path("features", one).parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.rand(1, 4, 3, 3).half(), Path("features", f"{one}.pt"))
    assert bring("uss", "features") == 0
    assert read_features(store.path("uss", "train", IDS[0])).shape == (4, 3, 3)
    with pytest.raises(AssertionError, match="ran fit"):
        stage("stage3_dhr", overlays=("debug.yaml", "imported.yaml"))


def test_an_import_is_stale_when_classes_or_images_change(place: Path, store: ArtifactStore, lines: Lines):
    assert bring("base_mask") == 0
    assert main(["status", "--dataset", "own.yaml"]) == 0
    assert any("base_mask/train" in line and "imported" in line for line in lines.messages)
    text = Path("own.yaml").read_text()
    Path("own.yaml").write_text(text.replace("[cat, dog]", "[cat, dog, cow]"))
    assert main(["status", "--dataset", "own.yaml"]) == 1
    (line,) = (line for line in lines.messages if "stale" in line)
    assert 'classes ["background", "cat", "dog"] -> ["background", "cat", "dog", "cow"]; imported from' in line
    assert line.endswith("import it again)")
    Path("own.yaml").write_text(text)
    Path("photos/tags.csv").write_text(Path("photos/tags.csv").read_text().replace("sub/img 0,", "sub/img 1,"))
    assert stage("stage1_cam") == 2
    assert "image ids 8 -> 7 images" in lines.messages[-1]
    assert lines.messages[-1].endswith("import it again), or make it here instead, with --force.")


def test_an_import_checks_everything_before_it_writes(place: Path, store: ArtifactStore, lines: Lines):
    path = Path("theirs", f"{IDS[7]}.png")
    for values, message in (
        (np.zeros((40, 48, 3), np.uint8), "3 channels"),
        (np.zeros((9, 9), np.uint8), "9x9 pixels, but its image is 48x40"),
        (np.full((40, 48), 3, np.uint8), "outside the 3 classes"),
    ):
        Image.fromarray(values).save(path)
        assert bring("base_mask") == 2
        assert message in lines.messages[-1]
        assert store.kinds() == []
    path.unlink()
    assert bring("base_mask") == 2
    assert "1 of 8 images have no .png file in theirs, first sub/img 7.png" in lines.messages[-1]
    assert bring("base_mask", "nowhere") == 2
    shutil.copy("theirs/sub/img 1.png", path)
    assert bring("base_mask") == 2  # that photo is turned, this one is not


def test_masks_of_other_class_values_are_noticed(place: Path, lines: Lines):
    for path in Path("theirs/sub").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 0, 3 - mask, 0).astype(np.uint8)).save(path)
    assert bring("mars_mask") == 0
    assert "of 8 files of mars_mask hold classes that are no tags of their image" in lines.text


def test_activation_maps_of_irn_become_cams(place: Path, store: ArtifactStore, lines: Lines):
    for index, one in enumerate(IDS):
        keys = [("cat", "dog").index(tag) for tag in TAGS[index % 3]]
        content = {"keys": torch.tensor(keys), "cam": torch.rand(len(keys), 5, 6)}
        Path("cams", one).parent.mkdir(parents=True, exist_ok=True)
        save(Path("cams", f"{one}.npy"), content)
    assert bring("cam", "cams") == 0
    keys, cam = read_cam(store.path("cam", "train", IDS[2]))
    assert (keys.tolist(), cam.shape) == ([1, 2], (2, 5, 6))
    assert "no tags of their image" not in lines.text
