from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhr_lightning.data.datasets.tag_table import merge_rows, read_tag_table
from dhr_lightning.errors import DataError, TagError

LONG = "image,tag\na.jpg,cat\na.jpg,dog\nb.jpg,cat\n"
LIST = 'image,tags\na.jpg,"cat;dog"\nb.jpg,cat\n'
ONE_HOT = "image,cat,dog\na.jpg,1,1\nb.jpg,1,0\n"
WANTED = {"a.jpg": {"cat", "dog"}, "b.jpg": {"cat"}}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "tags.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tags(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in read_tag_table(path).rows:
        found.setdefault(row.image, set()).update(row.tags)
    return found


@pytest.mark.parametrize(("text", "form"), [(LONG, "long"), (LIST, "list"), (ONE_HOT, "one-hot")])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("image", "file_name"),
        lambda text: text.replace("image", " File_Name "),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", " , ") if '"' not in text else text,
        lambda text: text.rstrip("\n"),
    ],
)
def test_the_three_forms_say_the_same(tmp_path: Path, text: str, form: str, change):
    table = read_tag_table(write(tmp_path, change(text)))
    assert table.form == form
    assert tags(table.path) == WANTED
    assert [name for name, _ in table.names] == ["cat", "dog"]
    assert not table.has_splits


@pytest.mark.parametrize(
    ("text", "form"), [(LONG, "long"), (LIST, "list"), (ONE_HOT, "one-hot")]
)  # as spreadsheets in many countries save them
def test_semicolons_may_separate_columns(tmp_path: Path, text: str, form: str):
    table = read_tag_table(write(tmp_path, text.replace("cat;dog", "cat#dog").replace(",", ";").replace("#", ";")))
    assert (table.form, tags(table.path)) == (form, WANTED)


@pytest.mark.parametrize("mark", ["1", "1.0", "true", "TRUE", "yes", "x"])
@pytest.mark.parametrize("blank", ["0", "0.0", "", "false", "No"])
def test_one_hot_cells_have_usual_spellings(tmp_path: Path, mark: str, blank: str):
    assert tags(write(tmp_path, f"image,cat,dog\na,{mark},{blank}\n")) == {"a": {"cat"}}


def test_rows_know_their_lines_and_splits(tmp_path: Path):
    table = read_tag_table(write(tmp_path, '\nimage,split,tags\n\na,train,"cat;\ndog"\nb,Validation,\n'))
    assert [(row.image, row.tags, row.line, row.split) for row in table.rows] == [
        ("a", ("cat", "dog"), 4, "train"),
        ("b", (), 6, "val"),
    ]
    assert table.has_splits
    assert table.names == (("cat", 4), ("dog", 4))


def test_rows_of_one_image_are_joined(tmp_path: Path):
    first, again = read_tag_table(write(tmp_path, "image,tag\na,cat\na,cat;dog\n")).rows
    joined = merge_rows(tmp_path, first, again)
    assert (joined.tags, joined.line) == (("cat", "dog"), 2)
    rows = read_tag_table(write(tmp_path, "image,tag,split\na,cat,train\na,dog,val\n")).rows
    with pytest.raises(DataError, match=r"line 3: 'a' is in split val, but line 2 says train"):
        merge_rows(tmp_path, *rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,tags\n", "a header and no row"),
        ("a.jpg,cat\n", "line 1 names an image: 'a.jpg'. Put a header"),
        ("photo,tags\na,cat\n", "line 1 is no header: 'photo'"),
        ("image\na\n", "line 1 has no column of tags"),
        ("image,tags,cat\na,cat,1\n", "line 1 has both a column 'tags' and a column 'cat'"),
        ("image,cat,cat\na,1,1\n", "line 1 names a column twice"),
        ("image,tags\na,cat,dog\n", "line 2 has 3 cells, but its header has 2"),
        ("image,tags\na,cat\n,dog\n", "line 3 names no image"),
        ("image,tags,split\na,cat,trian\n", "line 2: expected split train, val or test, but got 'trian'"),
        ('image,tags\na,"cat\n', "line 2 is not CSV"),
        ("image,tags\nä,cat\n".encode("latin1"), "is not UTF-8"),
        ("image,tags\na,cat\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataError, match=r"tags\.csv") as error:
        read_tag_table(write(tmp_path, text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cat,dog\na,1,0\nb,2,0\n", "line 3: expected 0 or 1 in column 'cat', but got '2'"),
        ('image,tags\na,"cat,dog"\n', "line 2: the tag 'cat,dog' holds a comma"),
        ("image,tag\na,cat\nb,Cat\n", "two ways, 'Cat' (line 3) and 'cat' (line 2)"),
        ("image,tag\na,Cat\nb,car\nc,cat\n", "two ways, 'Cat' (line 2) and 'cat' (line 4)"),
    ],
)
def test_a_tag_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(TagError) as error:
        read_tag_table(write(tmp_path, text))
    assert message in str(error.value)


def test_a_missing_table_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"no table of tags at .*tags\.csv"):
        read_tag_table(tmp_path / "tags.csv")


_NAME = st.text("abcdefgh XYZ-_äß", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(_NAME, st.sets(st.sampled_from(["cat", "dog", "cow", "traffic light"]), min_size=1), min_size=1))
def test_every_form_of_the_same_facts_reads_alike(tmp_path_factory: pytest.TempPathFactory, facts: dict[str, set[str]]):
    folder = tmp_path_factory.mktemp("forms")
    classes = sorted(set().union(*facts.values()))
    forms = [
        "image,tag\n" + "".join(f"{image},{tag}\n" for image, found in facts.items() for tag in sorted(found)),
        "image,tags\n" + "".join(f'{image},"{";".join(sorted(found))}"\n' for image, found in facts.items()),
        f"image,{','.join(classes)}\n"
        + "".join(f"{image},{','.join(str(int(one in found)) for one in classes)}\n" for image, found in facts.items()),
    ]
    for number, text in enumerate(forms):
        path = folder / f"{number}.csv"
        path.write_text(text, encoding="utf-8")
        assert tags(path) == facts
