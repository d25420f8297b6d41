from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.__main__ import main
from dhr_lightning.config import resolve
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.inspection.init import init_folder
from dhr_lightning.provenance.views import DataView
from tests.data.datasets.folder_samples import write_folder, write_photo
from tests.data.test_image_headers import png16
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]
NAMES = ["cat", "dog", "traffic light", "no", "ö: #x", *(f"long class name {k}" for k in range(30))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"img_{k}.jpg,{name}\n" for k, name in enumerate(NAMES))
    return write_folder(Path("my_photos"), f"image,tag\n{rows}", [f"img_{k}.jpg" for k in range(len(NAMES))])


def test_the_written_file_means_the_folder(folder: Path, lines: Lines):
    assert main(["init", "my_photos"]) == 0
    view = DataView(resolve(["my_photos.yaml"])["data"])
    assert (view.info.name, view.root, view.store.dataset) == ("my_photos", folder, "my_photos")
    assert view.info.classes.names == ("background", *sorted(NAMES))
    assert len(view.records("train")) + len(view.records("val")) == len(NAMES)
    assert "35 images (35 .jpg)" in lines.messages
    assert "next: python -m dhr_lightning run --data my_photos.yaml --download" in lines.messages
    assert max(map(len, Path("my_photos.yaml").read_text().splitlines())) <= 120


def test_a_file_is_overwritten_on_request_only(folder: Path, lines: Lines):
    Path("own.yaml").write_text("mine")
    assert main(["init", "my_photos", "--output", "own.yaml"]) == 2
    assert lines.messages[-1] == "error: own.yaml exists. Choose another --output, or overwrite it with --force."
    assert Path("own.yaml").read_text() == "mine"
    assert main(["init", "my_photos", "--output", "own.yaml", "--force"]) == 0
    assert resolve(["own.yaml"])["data"]["dataset"] == "folder"


def test_what_does_not_fit_is_counted_and_listed(folder: Path, lines: Lines):
    write_photo(folder / "images" / "bare.jpg")
    with (folder / "tags.csv").open("a") as table:
        table.write("gone.jpg,cat\nimg_0.jpg,dog\n")
    assert init_folder("my_photos") == 0
    assert "tags.csv: long form, 35 images with a row, 1 repeated rows merged" in lines.text
    assert "1 images have no tag and are left out of training (data.untagged: drop): bare" in lines.text
    assert "1 names match no image: gone.jpg (my_photos/tags.csv, line 37)" in lines.text
    assert "unmatched: ignore" in Path("my_photos.yaml").read_text()


def test_a_class_file_is_used(folder: Path, lines: Lines):
    (folder / "classes.txt").write_text("\n".join(["background", *reversed(NAMES), "unseen"]))
    assert init_folder("my_photos") == 0
    assert DataView(resolve(["my_photos.yaml"])["data"]).info.classes.tag_names == (*reversed(NAMES), "unseen")
    assert "1 classes have no image: unseen" in lines.text


def test_a_folder_that_cannot_be_used_is_explained(folder: Path):
    (folder / "tags.csv").unlink()
    with pytest.raises(DataError, match=r'no table of tags at .*`image,tags`.*`img_0\.jpg,"cat;dog"`'):
        init_folder("my_photos")
    with pytest.raises(DataError, match="nowhere does not exist"):
        init_folder("nowhere")
    Path("my photos").mkdir()
    with pytest.raises(ConfigError, match="'my photos' cannot name a folder"):
        init_folder("my photos")
    assert not list(Path().glob("*.yaml"))


@pytest.mark.parametrize(
    ("table", "policy"),
    [
        ("image,crack\na.jpg,1\nb.jpg,0\nc.jpg,0\n", "background"),
        ("image,crack\na.jpg,1\nb.jpg,0\n", "drop"),  # of c.jpg nothing is known
        ("image,split,crack\na.jpg,train,1\nb.jpg,train,0\nc.jpg,train,1\n", "background"),
        ("image,tags\na.jpg,crack\nb.jpg,\nc.jpg,\n", "drop"),  # an empty cell may mean both
        ("image,crack\na.jpg,1\nb.jpg,1\nc.jpg,1\n", "drop"),
    ],
)
def test_images_that_the_table_calls_negative_train_as_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines, table: str, policy: str
):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("walls"), table, ["a.jpg", "b.jpg", "c.jpg"])
    assert init_folder("walls") == 0
    assert resolve(["walls.yaml"])["data"]["untagged"] == policy
    assert ("train as background (data.untagged: background): b" in lines.text) == (policy == "background")


def test_no_image_is_background_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    root = write_folder(Path("walls"), "image,brick,wood\na.jpg,1,0\nb.jpg,0,0\n", ["a.jpg", "b.jpg"])
    (root / "classes.txt").write_text("brick\nwood\n")
    assert init_folder("walls") == 0
    config = resolve(["walls.yaml"])["data"]
    assert config["untagged"] == ("background" if config["options"]["background"] else "drop")


@pytest.mark.parametrize("kept", [True, False])
def test_doctor_counts_negatives_that_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines, kept: bool):
    """One class, in every image with a tag: a classifier learns it from the images without."""
    monkeypatch.chdir(tmp_path)
    names = [f"{index}.jpg" for index in range(6)]
    rows = "".join(f"{name},train,{index % 2}\n" for index, name in enumerate(names))
    write_folder(Path("walls"), f"image,split,crack\n{rows}", names)
    assert init_folder("walls") == 0
    text = Path("walls.yaml").read_text()
    Path("walls.yaml").write_text(text if kept else text.replace("untagged: background", "untagged: drop"))
    main(["doctor", "--data", "walls.yaml"])
    assert ("Classes that are in every training image" in lines.text) == (not kept)


def test_kinds_that_are_not_read_are_named_and_never_hidden(folder: Path, lines: Lines):
    (folder / "images" / "scan.dcm").write_bytes(b"DICM")
    (folder / "images" / "bare.nef").write_bytes(b"RAW")
    with (folder / "tags.csv").open("a") as table:
        table.write("scan.dcm,cat\ngone.jpg,cat\n")
    assert init_folder("my_photos") == 0
    assert "2 files are not read: bare.nef (camera raw: develop it to JPEG), scan.dcm (medical:" in lines.text
    assert "unmatched: error" in Path("my_photos.yaml").read_text()
    view = DataView(resolve(["my_photos.yaml"])["data"])
    with pytest.raises(DataError, match=r"'scan\.dcm' \(.*line 37\) cannot be read\. medical: write its slices"):
        view.records("train")


def test_depth_and_pages_are_said(folder: Path, lines: Lines):
    png16(folder / "images" / "deep.png", np.zeros((6, 8, 3), np.uint16))
    frames = [Image.new("L", (8, 6), grey) for grey in (0, 100, 200)]
    frames[0].save(folder / "images" / "film.gif", save_all=True, append_images=frames[1:])
    (folder / "images" / "cut.jfif").write_bytes(b"\xff\xd8")
    assert init_folder("my_photos") == 0
    assert (
        "1 photos have more than 8 bits per channel and are refused: scale them to 8 bits: deep.png (16" in lines.text
    )
    assert "1 files have several pages or frames, of which the first is used: film.gif (3)" in lines.text
    assert "1 photos cannot be read: cut.jfif (" in lines.text


def test_classes_of_a_single_image_are_asked_about(folder: Path, lines: Lines):
    with (folder / "tags.csv").open("a") as table:
        table.write("img_1.jpg,cat\n")
    assert init_folder("my_photos") == 0
    (line,) = (line for line in lines.messages if "single image: misspelt" in line)
    assert line.startswith("34 classes have a single image")
    assert "cat" not in line.split(": ")[-1].split(", ")
