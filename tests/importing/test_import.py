"""Folders without any mask through a whole recipe, and recipes that start from imported artifacts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.artifacts.arrays import read_features
from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from tests.data.datasets.folder_samples import write_photo
from tests.importing.test_import_pickle import save
from tests.pipeline_workspace import Lines

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


def run(*options: str) -> int:
    """Run `dhr` with features that need no training; `debug.yaml` sizes the built-in data, so its options go back."""
    recipe = ["run", "dhr", "--data", "own.yaml", "--overlay", "debug.yaml", "--swap", "uss=patches"]
    # a network that has learnt next to nothing finds no background
    own = ["--propagation.background", "0.8", "--data.options", "{holdout: 0, classes: [cat, dog]}"]
    swapped = any("propagation=" in word for word in options)
    return main([*recipe, *options, "--", *own[2 * swapped :]])


def bring(kind: str, source: str = "theirs", *options: str) -> int:
    return main(["import", kind, source, "--data", "own.yaml", *options])


def outputs(store: ArtifactStore) -> dict[str, str]:
    """Addresses in the folder of artifacts, by method and kind: `crf/mask`."""
    return {re.sub(r"/[0-9a-f]{10}/", "/", address): address for address, _ in store.addresses()}


@pytest.fixture
def store(place: Path) -> ArtifactStore:
    return ArtifactStore("artifacts", "photos")


@pytest.mark.slow
def test_a_recipe_runs_without_any_mask_or_validation_image_and_then_with_the_masks_of_others(
    place: Path, store: ArtifactStore, lines: Lines
):
    assert run() == 0, lines.text
    found = outputs(store)
    assert {"dhr/mask/round_01", "dhr/prediction", "mars/mask", "crf/mask"} <= found.keys()
    assert store.manifest(found["dhr/prediction"], "val").count == 0
    assert all(read_mask(store.path(found["dhr/mask/round_01"], "train", one)).size == 48 * 40 for one in IDS)
    assert read_mask(store.path(found["crf/mask"], "train", IDS[1])).shape == (48, 40)  # turned as its EXIF tag says
    (report,) = Path("reports/photos").rglob("report.json")
    assert (
        "No true masks on train: only label-free figures are reported there." in json.loads(report.read_text())["notes"]
    )
    before = {path: path.stat().st_mtime_ns for path in store.folder(found["crf/mask"], "train").glob("*.png")}

    assert bring("mask") == 0
    lines.clear()
    assert run("--swap", "propagation=imported/theirs", "--until", "mars") == 0
    assert "mars: fitting" in lines.text
    assert "uss: fitting" not in lines.text  # features do not depend on masks
    assert not any(line.startswith("cam:") for line in lines.messages)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    lines.clear()
    assert run() == 0
    assert "up to date" in lines.messages[-1]  # the first variant is still there


def test_a_recipe_starts_from_imported_masks_alone(place: Path, store: ArtifactStore, lines: Lines, no_lightning: None):
    assert run("--swap", "propagation=imported/theirs") == 2
    assert "propagation uses imported/theirs, but nothing was imported under this name" in lines.messages[-1]
    assert "import KIND FOLDER --name theirs" in lines.messages[-1]
    assert bring("mask") == 0
    assert "for example --swap propagation=imported/theirs" in lines.text
    assert store.addresses() == [("imported/theirs/mask", "train")]
    lines.clear()
    assert run("--swap", "propagation=imported/theirs", "--until", "propagation") == 0
    assert lines.messages[-1].endswith("up to date")
    with pytest.raises(AssertionError, match="ran fit"):
        run("--swap", "propagation=imported/theirs")
    assert "cam: fitting" in lines.text  # the segmenters start from its weights
    assert "propagation:" not in lines.text


def test_several_kinds_of_one_name_stand_in_for_several_steps(
    place: Path, store: ArtifactStore, lines: Lines, no_lightning: None
):
    for one in IDS:
        Path("features", one).parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.rand(1, 4, 3, 3).half(), Path("features", f"{one}.pt"))
    assert bring("features", "features", "--name", "theirs") == 0
    assert bring("mask", "theirs", "--name", "theirs") == 0
    assert read_features(store.path("imported/theirs/features", "train", IDS[0])).shape == (4, 3, 3)
    lines.clear()
    with pytest.raises(AssertionError, match="ran fit"):
        run("--swap", "propagation=imported/theirs", "uss=imported/theirs", "--until", "mars")
    assert "mars: fitting" in lines.text
    assert not any(line.startswith(("cam:", "uss:", "propagation:")) for line in lines.messages)


def test_imports_of_two_folders_coexist_and_none_is_replaced_without_a_word(
    place: Path, store: ArtifactStore, lines: Lines
):
    assert bring("mask") == 0
    shutil.copytree("theirs", "others")
    assert bring("mask", "others") == 0
    assert store.addresses() == [("imported/others/mask", "train"), ("imported/theirs/mask", "train")]
    assert bring("mask", "others", "--name", "theirs") == 2
    assert "was imported from" in lines.messages[-1]
    assert lines.messages[-1].endswith("Choose another --name, or --force.")
    assert bring("mask", "others", "--name", "theirs", "--force") == 0
    assert str(Path("others").resolve()) in str(store.manifest("imported/theirs/mask", "train").settings)
    assert bring("mask", "others", "--name", "a/b") == 2
    assert "The name of an import 'a/b' cannot name a folder" in lines.messages[-1]


def test_an_import_is_stale_when_classes_or_images_change(place: Path, lines: Lines, no_lightning: None):
    swap = ["--swap", "propagation=imported/theirs", "--until", "propagation"]
    assert bring("mask") == 0
    assert run(*swap) == 0
    text = Path("own.yaml").read_text()
    Path("own.yaml").write_text(text.replace("[cat, dog]", "[cat, dog, cow]"))
    recipe = ["run", "dhr", "--data", "own.yaml", *swap]
    assert main(recipe) == 2
    assert 'classes ["background", "cat", "dog"] -> ["background", "cat", "dog", "cow"]' in lines.messages[-1]
    assert "import it again" in lines.messages[-1]
    Path("own.yaml").write_text(text)
    Path("photos/tags.csv").write_text(Path("photos/tags.csv").read_text().replace("sub/img 0,", "sub/img 1,"))
    assert main(recipe) == 2
    assert "image ids 8 -> 7 images" in lines.messages[-1]


def test_an_import_checks_everything_before_it_writes(place: Path, store: ArtifactStore, lines: Lines):
    path = Path("theirs", f"{IDS[7]}.png")
    for values, message in (
        (np.zeros((40, 48, 3), np.uint8), "3 channels"),
        (np.zeros((9, 9), np.uint8), "9x9 pixels, but its image is 48x40"),
        (np.full((40, 48), 3, np.uint8), "outside the 3 classes"),
    ):
        Image.fromarray(values).save(path)
        assert bring("mask") == 2
        assert message in lines.messages[-1]
        assert store.addresses() == []
    path.unlink()
    assert bring("mask") == 2
    assert "1 of 8 images have no .png file in theirs, first sub/img 7.png" in lines.messages[-1]
    assert bring("mask", "nowhere") == 2
    shutil.copy("theirs/sub/img 1.png", path)
    assert bring("mask") == 2  # that photo is turned, this one is not


def test_masks_of_other_class_values_are_noticed(place: Path, lines: Lines):
    for path in Path("theirs/sub").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 0, 3 - mask, 0).astype(np.uint8)).save(path)
    assert bring("label") == 0
    assert "of 8 files of label hold classes that are no tags of their image" in lines.text


def test_activation_maps_of_irn_become_cams(place: Path, store: ArtifactStore, lines: Lines):
    for index, one in enumerate(IDS):
        keys = [("cat", "dog").index(tag) for tag in TAGS[index % 3]]
        content = {"keys": torch.tensor(keys), "cam": torch.rand(len(keys), 5, 6)}
        Path("cams", one).parent.mkdir(parents=True, exist_ok=True)
        save(Path("cams", f"{one}.npy"), content)
    assert bring("cam", "cams") == 0
    keys, cam = read_cam(store.path("imported/cams/cam", "train", IDS[2]))
    assert (keys.tolist(), cam.shape) == ([1, 2], (2, 5, 6))
    assert "no tags of their image" not in lines.text
