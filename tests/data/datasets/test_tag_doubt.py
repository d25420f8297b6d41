"""Tables in another syntax end in a question, never in wrong classes; an option or a list of classes answers it."""

import unicodedata
from pathlib import Path

import pytest

from dhr_lightning.__main__ import main
from dhr_lightning.config import resolve
from dhr_lightning.data.datasets.tag_doubt import check_doubtful_tags
from dhr_lightning.data.datasets.tag_table import read_tag_table
from dhr_lightning.errors import DataError, TagError
from dhr_lightning.provenance.views import DataView
from tests.data.datasets.folder_samples import write_folder
from tests.pipeline_workspace import Lines

pytest_plugins = ["tests.pipeline_fixtures"]


def init(rows: dict[str, str], *options: str, header: str = "image,tags") -> int:
    table = "".join(f'{name},"{cell}"\n' for name, cell in rows.items())
    write_folder(Path("photos"), f"{header}\n{table}", list(rows))
    return main(["init", "photos", *options])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tags_of(names: list[str]) -> list[tuple[str, int]]:
    return [(name, line) for line, name in enumerate(names, start=2)]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "cat cup", "cup", "dog"], "line 3: the tag 'cat cup' looks like 2 tags that spaces separate"),
        (["cat cup", "cat dog", "dog cup", "dog cup cat"], "looks like 2 tags that spaces separate"),
        (["cat|dog", "cow"], "looks like 2 tags that bars separate: 'cat', 'dog'. Say so with --separator '|'"),
        (["cat/dog", "cat", "dog"], "slashes separate"),
        (["['cat'", "'dog']", "['cat', 'dog']"], "looks like a list that another program wrote"),
        (['{"choices":["cat"]}'], "looks like a list"),
        (["'cat'", "dog"], "looks like a list"),
        (["0", "1"], "all tags are 0 or 1, which look like absent and present"),
        (["1"], "Name the column after the class"),
        (["0 1", "2", "17"], "all tags are numbers"),
        (["3.0", "-1"], "all tags are numbers"),
        (["defect", "Normal"], "does the tag 'Normal' mean that an image shows none"),
        (["No_Finding", "cyst"], "--nothing 'No_Finding'"),
    ],
)
def test_what_looks_like_another_syntax_is_asked_about(names: list[str], words: str):
    with pytest.raises(TagError) as caught:
        check_doubtful_tags(Path("tags.csv"), tags_of(names), separator=";")
    assert words in str(caught.value)
    assert "tags.csv" in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["traffic light", "stop sign", "dog", "hot dog", "baseball bat", "baseball glove", "no"],
        ["cat", "N 95 mask", "7up", "rock'n'roll", "and/or gate"],
        ["abnormal", "normality"],
    ],
)
def test_plain_names_are_classes(names: list[str]):
    check_doubtful_tags(Path("tags.csv"), tags_of(names), separator=";")


def test_a_separator_that_is_named_separates(lines: Lines):
    rows = {"a.jpg": "cat cup", "b.jpg": "cup", "c.jpg": "cat", "d.jpg": "dog"}
    assert init(rows) == 2
    assert "spaces separate" in lines.messages[-1]
    assert not Path("photos.yaml").exists()
    assert init(rows, "--separator", " ") == 0
    view = DataView(resolve(["photos.yaml"])["data"])
    assert view.info.classes.tag_names == ("cat", "cup", "dog")
    records = {one.id: one.tags for split in ("train", "val") for one in view.records(split)}
    assert records["a"] == (1, 2)


def test_a_tag_that_means_nothing_is_no_class_and_its_images_are_negatives(lines: Lines):
    rows = {"a.jpg": "crack", "b.jpg": "normal", "c.jpg": "normal", "d.jpg": "crack;rust"}
    assert init(rows) == 2
    assert "--nothing 'normal'" in lines.messages[-1]
    assert init(rows, "--nothing", "normal") == 0
    data = resolve(["photos.yaml"])["data"]
    assert data["untagged"] == "background"
    assert DataView(data).info.classes.tag_names == ("crack", "rust")


def test_a_list_of_classes_answers_every_doubt():
    rows = {"a.jpg": "0", "b.jpg": "1", "c.jpg": "normal"}
    Path("photos").mkdir()
    Path("photos/classes.txt").write_text("0\n1\nnormal\n")
    assert init(rows) == 0
    assert DataView(resolve(["photos.yaml"])["data"]).info.classes.tag_names == ("0", "1", "normal")


def test_two_unicode_forms_of_one_name_are_one_name():
    """As written on two systems: the tag, and the file that the table names."""
    nfd = unicodedata.normalize("NFD", "café")
    write_folder(
        Path("photos"), f"image,tags\na.jpg,café\n{nfd}.jpg,{nfd};cup\nb.jpg,cup\n", ["a.jpg", "b.jpg", f"{nfd}.jpg"]
    )
    table = read_tag_table(Path("photos/tags.csv"))
    assert [name for name, _ in table.names] == ["café", "cup"]
    assert main(["init", "photos"]) == 0
    view = DataView(resolve(["photos.yaml"])["data"])
    tags = {one.id: one.tags for split in ("train", "val") for one in view.records(split)}
    assert tags[nfd] == (1, 2)


@pytest.mark.parametrize("other", ["Cat", "ｃａｔ", "cat\u200b", "CAT"])
def test_names_that_look_alike_are_refused(other: str):
    write_folder(Path("photos"), f"image,tags\na.jpg,cat\nb.jpg,{other}\n", ["a.jpg", "b.jpg"])
    with pytest.raises(TagError, match="spells one tag in two ways"):
        read_tag_table(Path("photos/tags.csv"))


def test_a_column_that_means_nothing_is_no_class_either(lines: Lines):
    write_folder(Path("photos"), "image,crack,normal\na.jpg,1,0\nb.jpg,0,1\n", ["a.jpg", "b.jpg"])
    assert main(["init", "photos"]) == 2
    assert main(["init", "photos", "--nothing", "normal"]) == 0
    data = resolve(["photos.yaml"])["data"]
    assert DataView(data).info.classes.tag_names == ("crack",)
    assert data["untagged"] == "background"


def test_one_name_in_two_forms_on_disk_is_refused():
    nfc, nfd = "caf\u00e9.jpg", "cafe\u0301.jpg"
    write_folder(Path("photos"), f"image,tags\n{nfc},cat\n", [nfc, nfd])
    if len(list(Path("photos/images").iterdir())) < 2:
        pytest.skip("this disk keeps one form")
    with pytest.raises(DataError, match="have one name in two forms"):
        DataView({"dataset": "folder", "root": "photos"}).records("train")
