from pathlib import Path

import pytest

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.voc import VOC_CLASSES, read_voc
from dhr_lightning.data.registry import read_records
from dhr_lightning.errors import DataError, TagError
from tests.conftest import TINY_VOC


def use_table(root: Path, text: str) -> Path:
    """Replace the annotations by `tags.csv`."""
    (root / "Annotations").rename(root / "unused")
    (root / "tags.csv").write_text(text, encoding="utf-8")
    return root / "tags.csv"


def list_of(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


@pytest.mark.parametrize("split", ["train", "val"])
def test_records_hold_files_and_tags_in_the_order_of_the_list(tiny_voc: Path, voc_classes: ClassSet, split: str):
    records = read_voc(tiny_voc, split, voc_classes)
    assert [record.id for record in records] == list(TINY_VOC[split])
    for record in records:
        _, squares = TINY_VOC[split][record.id]
        assert record.tags == tuple(sorted(VOC_CLASSES.index(square.name) for square in squares))
        assert record.image == tiny_voc / "JPEGImages" / f"{record.id}.jpg"
        assert record.gt_mask == tiny_voc / "SegmentationClass" / f"{record.id}.png"
        assert record.stuff is None


def test_the_list_decides_the_order(voc_copy: Path, voc_classes: ClassSet):
    ids = ["2007_000003", "2007_000001"]
    list_of(voc_copy, "train").write_text("\n".join(ids))
    assert [record.id for record in read_voc(voc_copy, "train", voc_classes)] == ids


def test_the_augmented_list_and_masks_win_for_training_only(voc_copy: Path, voc_classes: ClassSet):
    (list_of(voc_copy, "train").with_name("train_aug.txt")).write_text("2007_000002\n")
    (list_of(voc_copy, "train").with_name("val_aug.txt")).write_text("2007_000002\n")
    (voc_copy / "SegmentationClassAug").mkdir()
    (voc_copy / "SegmentationClassAug" / "2007_000002.png").write_bytes(b"x")
    (record,) = read_voc(voc_copy, "train", voc_classes)
    assert record.gt_mask == voc_copy / "SegmentationClassAug" / "2007_000002.png"
    assert len(read_voc(voc_copy, "val", voc_classes)) == 2


def test_masks_are_optional_and_stuff_is_found(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "SegmentationClass" / "2007_000001.png").unlink()
    (voc_copy / "Stuff").mkdir()
    records = read_voc(voc_copy, "train", voc_classes)
    assert [record.gt_mask is None for record in records] == [True, False, False, False]
    assert records[0].stuff == voc_copy / "Stuff" / "2007_000001.png"


def test_a_table_gives_the_same_tags_as_annotations(voc_copy: Path, voc_classes: ClassSet):
    expected = [record.tags for record in read_voc(voc_copy, "train", voc_classes)]
    rows = [f"{name},{' ; '.join(s.name for s in squares)}" for name, (_, squares) in TINY_VOC["train"].items()]
    table = use_table(voc_copy, "\ufeffimage,tags\n" + "\n\n".join(reversed(rows)) + "\nunused,cat\n")
    assert [record.tags for record in read_voc(voc_copy, "train", voc_classes)] == expected
    table.write_text("image,tags\n2007_000001,cat;cat;\n2007_000002\n2007_000003,\n")
    assert [record.tags for record in read_voc(voc_copy, "train", voc_classes)] == [(8,), (), (), ()]


def test_an_unknown_tag_in_an_annotation_names_file_line_and_nearest_class(voc_copy: Path, voc_classes: ClassSet):
    path = voc_copy / "Annotations" / "2007_000002.xml"
    path.write_text(path.read_text().replace("<name>cat<", "<name>catt<"))
    with pytest.raises(TagError, match=r"Unknown tag 'catt' in .*2007_000002\.xml, line 6\. Did you mean 'cat'\?"):
        read_voc(voc_copy, "train", voc_classes)


def test_an_unknown_tag_in_a_table_names_file_line_and_nearest_class(voc_copy: Path, voc_classes: ClassSet):
    use_table(voc_copy, "image,tags\n2007_000001,cat\n2007_000002,dog;motorbik\n")
    with pytest.raises(TagError, match=r"'motorbik' in .*tags\.csv, line 3\. Did you mean 'motorbike'\?"):
        read_voc(voc_copy, "train", voc_classes)


@pytest.mark.parametrize("tag", ["background", "Zeppelin"])
def test_a_tag_without_a_near_class_shows_the_known_ones(voc_copy: Path, voc_classes: ClassSet, tag: str):
    use_table(voc_copy, f"image,tags\n2007_000001,{tag}\n")
    with pytest.raises(TagError, match=rf"'{tag}' in .*line 2\. Known: aeroplane, bicycle"):
        read_voc(voc_copy, "train", voc_classes)


def test_a_table_without_header_does_not_lose_its_first_image(voc_copy: Path, voc_classes: ClassSet):
    use_table(voc_copy, "2007_000001,cat\n2007_000002,dog\n")
    with pytest.raises(TagError, match=r"no header.*'2007_000001'"):
        read_voc(voc_copy, "train", voc_classes)


def test_images_without_annotation_have_no_tags(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "Annotations" / "2007_000001.xml").unlink()
    (voc_copy / "Annotations" / "2007_000003.xml").write_text("<annotation/>")
    records = read_voc(voc_copy, "train", voc_classes)
    assert [bool(record.tags) for record in records] == [False, True, False, True]


def test_a_broken_annotation_is_named(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "Annotations" / "2007_000003.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"2007_000003\.xml is not valid XML"):
        read_voc(voc_copy, "train", voc_classes)


def test_without_any_tags_nothing_starts(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "Annotations").rename(voc_copy / "unused")
    with pytest.raises(DataError, match=r"neither Annotations/\*\.xml nor tags\.csv"):
        read_voc(voc_copy, "train", voc_classes)


def test_a_missing_image_is_named(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "JPEGImages" / "2007_000005.jpg").unlink()
    with pytest.raises(DataError, match=r"'2007_000005' of split 'val' is missing: .*2007_000005\.jpg"):
        read_voc(voc_copy, "val", voc_classes)


def test_other_image_formats_are_found(voc_copy: Path, voc_classes: ClassSet):
    path = voc_copy / "JPEGImages" / "2007_000005.jpg"
    path.rename(path.with_suffix(".PNG"))
    assert read_voc(voc_copy, "val", voc_classes)[0].image == path.with_suffix(".PNG")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_split_is_refused(voc_copy: Path, voc_classes: ClassSet, content: str):
    list_of(voc_copy, "val").write_text(content)
    with pytest.raises(DataError, match=r"Split 'val' is empty: .*val\.txt"):
        read_voc(voc_copy, "val", voc_classes)


def test_a_missing_list_is_refused(voc_copy: Path, voc_classes: ClassSet):
    list_of(voc_copy, "train").unlink()
    with pytest.raises(DataError, match=r"train_aug\.txt or .*train\.txt"):
        read_voc(voc_copy, "train", voc_classes)


def test_repeated_ids_are_counted_and_the_first_is_named(voc_copy: Path, voc_classes: ClassSet):
    list_of(voc_copy, "val").write_text("2007_000005\n2007_000006\n2007_000006\n2007_000005\n")
    with pytest.raises(DataError, match="2 ids more than once, first '2007_000006'"):
        read_voc(voc_copy, "val", voc_classes)


def test_a_dataset_is_read_by_name(tiny_voc: Path, voc_classes: ClassSet):
    assert read_records("voc", tiny_voc, "val") == read_voc(tiny_voc, "val", voc_classes)
