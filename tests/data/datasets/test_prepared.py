from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.prepared import Source, keeps_table, prepare_split, read_prepared
from dhr_lightning.errors import DataError, TagError
from tests.data.preparation.benchmark_layouts import SIZE, values_of, write_photo

CLASSES = ClassSet(("background", "cat", "dog", "hot dog"))


def value(number: int) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0]), number, np.uint8)


def sources(root: Path, *numbers: int) -> list[Source]:
    """Photo n is full of class n."""
    for number in numbers:
        write_photo(root / "photos" / f"p{number}.jpg")
    return [Source(f"p{n}", f"photos/p{n}.jpg", partial(value, n), changed=1.0) for n in numbers]


def prepare(root: Path, rows: list[Source], **settings: object) -> int:
    return prepare_split(root, "train", rows, CLASSES, tag_source="mask", settings=settings)


def read(root: Path):
    return read_prepared(root, "train", CLASSES, dataset="own")


def test_what_is_prepared_is_read(tmp_path: Path):
    assert prepare(tmp_path, sources(tmp_path, 3, 1, 255)) == 3
    records = read(tmp_path)
    assert [(record.id, record.tags) for record in records] == [("p3", (3,)), ("p1", (1,)), ("p255", ())]
    assert records[0].image == tmp_path / "photos" / "p3.jpg"
    np.testing.assert_array_equal(values_of(records[0].gt_mask), value(3))


def test_a_second_run_does_nothing_and_a_killed_one_is_continued(tmp_path: Path):
    rows = sources(tmp_path, 1, 2, 3)
    prepare(tmp_path, rows)
    assert prepare(tmp_path, rows) == 0
    masks = tmp_path / "prepared" / "masks" / "train"
    (masks / "p2.png").unlink()
    (masks / ".tmp-1-ab").write_bytes(b"half")
    (tmp_path / "prepared" / "train.json").write_text(
        (tmp_path / "prepared" / "train.json").read_text().replace("true", "false")
    )
    assert prepare(tmp_path, rows) == 1
    assert sorted(path.name for path in masks.iterdir()) == ["p1.png", "p2.png", "p3.png"]


def test_changed_sources_are_converted_again(tmp_path: Path):
    first, second = sources(tmp_path, 1, 2)
    prepare(tmp_path, [first, second])
    later = (tmp_path / "prepared" / "masks" / "train" / "p2.png").stat().st_mtime + 10
    assert prepare(tmp_path, [first, Source(second.id, second.image, partial(value, 3), changed=later)]) == 1
    assert [record.tags for record in read(tmp_path)] == [(1,), (3,)]


def test_other_settings_make_everything_again(tmp_path: Path):
    prepare(tmp_path, sources(tmp_path, 1, 2), rule=1)
    assert prepare(tmp_path, sources(tmp_path, 1, 2), rule=2) == 2
    assert prepare(tmp_path, sources(tmp_path, 1, 2, 3), rule=2) == 1
    assert len(read(tmp_path)) == 3


def test_masks_of_somebody_else_are_not_touched(tmp_path: Path):
    path = tmp_path / "prepared" / "masks" / "train" / "p1.png"
    write_photo(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"holds 1 masks that `prepare` did not make, first p1\.png"):
        prepare(tmp_path, sources(tmp_path, 1))
    assert path.read_bytes() == before


@pytest.mark.parametrize("image_id", ["", "../x", "a/b", "a\\b", ".hidden"])
def test_ids_that_are_no_file_names_are_refused(tmp_path: Path, image_id: str):
    with pytest.raises(DataError, match="is no file name"):
        prepare(tmp_path, [Source(image_id, "photos/x.jpg", partial(value, 1))])
    assert not list(tmp_path.iterdir())


def test_two_images_with_one_id_are_refused(tmp_path: Path):
    row = sources(tmp_path, 1)[0]
    with pytest.raises(DataError, match="Two images of split 'train' have the id 'p1'"):
        prepare(tmp_path, [row, row])


def test_an_image_needs_tags_or_a_mask(tmp_path: Path):
    write_photo(tmp_path / "photos" / "p.jpg")
    prepare(tmp_path, [Source("p", "photos/p.jpg", None, tags=(2,))])
    (record,) = read(tmp_path)
    assert record.tags == (2,)
    assert record.gt_mask is None
    with pytest.raises(TagError, match="'p' has neither tags nor a mask"):
        prepare(tmp_path, [Source("p", "photos/p.jpg", None)])


def own_table(root: Path, *lines: str) -> Path:
    write_photo(root / "photos" / "p1.jpg")
    path = root / "prepared" / "train.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["id,image,tags,source", *lines]), encoding="utf-8-sig")
    return path


def test_a_table_of_the_users_own_is_read_and_kept_without_any_mask(tmp_path: Path):
    own_table(tmp_path, "p1,photos/p1.jpg,hot dog;cat,me")
    (record,) = read(tmp_path)
    assert record.tags == (1, 3)
    assert record.gt_mask is None
    assert keeps_table(tmp_path, "train", source=tmp_path / "photos")
    assert not keeps_table(tmp_path, "val", source=tmp_path / "photos")


def test_a_table_that_was_made_is_kept_when_its_source_is_gone(tmp_path: Path):
    prepare(tmp_path, sources(tmp_path, 1))
    assert not keeps_table(tmp_path, "train", source=tmp_path / "photos")
    assert keeps_table(tmp_path, "train", source=tmp_path / "gone")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p1,photos/p1.jpg,catt,me", r"Unknown tag 'catt' in .*train\.csv, line 3\. Did you mean 'cat'\?"),
        ("p1,photos/p1.jpg,background,me", r"Unknown tag 'background' in .*line 3"),
        ("p1,photos/p9.jpg,cat,me", r"Image .*p9\.jpg of .*train\.csv, line 3 is missing"),
        ("p1,../p1.jpg,cat,me", r"line 3 points outside the dataset: '\.\./p1\.jpg'"),
        ("p1,/etc/passwd,cat,me", r"line 3 points outside the dataset"),
        ("../p1,photos/p1.jpg,cat,me", r"line 3: '\.\./p1' is no image id but a path"),
        ("p1,photos/p1.jpg", r"line 3 has 2 fields, expected 4"),
    ],
)
def test_a_wrong_row_names_file_and_line(tmp_path: Path, line: str, message: str):
    own_table(tmp_path, "p1,photos/p1.jpg,cat,me", line)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_a_split_that_is_not_prepared_names_the_command(tmp_path: Path):
    with pytest.raises(DataError, match=r"'train' of own is not prepared: .*train\.csv is missing\. Run `.* prepare"):
        read(tmp_path)
    own_table(tmp_path)
    with pytest.raises(DataError, match="'train' is empty"):
        read(tmp_path)
    (tmp_path / "prepared" / "train.csv").write_text("image,tags\n")
    with pytest.raises(DataError, match="does not start with the line id,image,tags,source"):
        read(tmp_path)
