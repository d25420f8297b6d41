"""Tables of other tools: read where their columns say what they are, asked about where they do not."""

from pathlib import Path

import pytest

from dhr_lightning.data.datasets.tag_doubt import check_doubtful_tags
from dhr_lightning.data.datasets.tag_table import read_tag_table
from dhr_lightning.errors import DataError, TagError

LABEL_STUDIO = (
    "id,image,choice,annotator,annotation_id\n"
    '1,/data/upload/7/0a1b2c3d-one.jpg,"{""choices"":[""cat"",""cup""]}",2,11\n'
    "2,/data/upload/7/ffffffff-two photos.jpg,dog,2,12\n"
    '3,http://host/three.jpg,"[""dog""]",2,13\n'
    "4,four.jpg,,2,14\n"
)


def write(folder: Path, text: str) -> Path:
    (folder / "tags.csv").write_text(text, encoding="utf-8")
    return folder / "tags.csv"


def test_an_export_of_label_studio_is_read(tmp_path: Path):
    table = read_tag_table(write(tmp_path, LABEL_STUDIO))
    assert [(row.image, row.tags, row.line) for row in table.rows] == [
        ("one.jpg", ("cat", "cup"), 2),
        ("two photos.jpg", ("dog",), 3),
        ("three.jpg", ("dog",), 4),
        ("four.jpg", (), 5),
    ]
    other = read_tag_table(tmp_path / "tags.csv", separator="|")
    assert other.rows[0].tags == ("cat", "cup")


@pytest.mark.parametrize("cell", ['"{""choices"": 3}"', '"[1, 2]"', '"{""choices"": [""cat"""'])
def test_a_choice_that_cannot_be_read_is_named(tmp_path: Path, cell: str):
    with pytest.raises(DataError, match=r"tags.csv, line 2"):
        read_tag_table(write(tmp_path, f"annotation_id,image,choice\n1,a.jpg,{cell}\n"))


def test_numbers_of_a_competition_are_asked_about(tmp_path: Path):
    table = read_tag_table(write(tmp_path, "Id,Target\na,5 0\nb,25\n"))
    assert table.form == "list"
    with pytest.raises(TagError, match=r"all tags are numbers .* Replace them by names"):
        check_doubtful_tags(table.path, table.names, separator=";")


def test_a_class_called_choice_is_a_class_like_any_other(tmp_path: Path):
    table = read_tag_table(write(tmp_path, "image,choice,other\na.jpg,1,0\nb.jpg,0,1\n"))
    assert [name for name, _ in table.names] == ["choice", "other"]


def test_a_choice_that_holds_the_separator_is_not_cut_in_two(tmp_path: Path):
    path = write(tmp_path, "annotation_id,image,choice\n1,a.jpg,cat;dog\n")
    with pytest.raises(DataError, match=r"line 2: a choice of 'cat;dog' holds ';'"):
        read_tag_table(path)
    assert read_tag_table(path, separator="|").rows[0].tags == ("cat;dog",)
