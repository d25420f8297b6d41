import numpy as np
import pytest

from dhr_lightning.data.catalog import ClassSet, tags_to_multi_hot, voc_palette
from dhr_lightning.data.registry import DATASETS, get_dataset
from dhr_lightning.errors import ConfigError


def test_voc_colours_are_the_official_ones():
    palette = voc_palette()
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192],
    ]  # fmt: skip
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.parametrize(("has_background", "offset"), [(True, 1), (False, 0)])
def test_values_are_tags_plus_offset(has_background: bool, offset: int):
    classes = ClassSet(("first", "second", "third"), has_background)
    assert classes.offset == offset
    assert classes.num_classes == 3
    assert classes.num_tags == 3 - offset
    assert classes.tag_names == classes.names[offset:]
    for tag, name in enumerate(classes.tag_names):
        assert classes.names[tag + classes.offset] == name


@pytest.mark.parametrize("has_background", [True, False])
def test_multi_hot_covers_exactly_the_tags(has_background: bool):
    classes = ClassSet(("first", "second", "third"), has_background)
    values = range(classes.offset, classes.num_classes)
    for value in values:
        vector = tags_to_multi_hot([value], classes)
        assert vector.dtype == np.float32
        assert vector.shape == (classes.num_tags,)
        assert np.flatnonzero(vector).tolist() == [value - classes.offset]
    assert tags_to_multi_hot(list(values), classes).tolist() == [1.0] * classes.num_tags
    assert not tags_to_multi_hot([], classes).any()


def test_without_background_the_first_class_is_not_black():
    with_background = ClassSet(("background", "cat", "dog")).palette
    without = ClassSet(("cat", "dog"), has_background=False).palette
    assert with_background[0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(without[:2], with_background[1:3])
    assert without[255].tolist() == with_background[255].tolist() == [224, 224, 192]


def test_own_colours_replace_the_first_ones_only():
    palette = ClassSet(("background", "cat", "dog"), colours=((1, 2, 3), (4, 5, 6))).palette
    assert palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    np.testing.assert_array_equal(palette[2:], voc_palette()[2:])


@pytest.mark.parametrize(
    ("names", "has_background", "message"),
    [
        (("background", "cat", "cat"), True, "names repeat"),
        (("background",), True, "got 0"),
        ((), False, "got 0"),
        (tuple(map(str, range(256))), True, "got 255"),
        (tuple(map(str, range(256))), False, "got 256"),
    ],
)
def test_impossible_class_lists_are_refused(names: tuple[str, ...], has_background: bool, message: str):
    with pytest.raises(ConfigError, match=message):
        ClassSet(names, has_background)


@pytest.mark.parametrize("has_background", [True, False])
def test_the_largest_class_list_leaves_room_for_ignore(has_background: bool):
    names = tuple(map(str, range(256)))
    classes = ClassSet(names[:255], has_background)  # values 0 to 254
    assert names.index(classes.tag_names[-1]) == 254 == classes.ignore_index - 1
    with pytest.raises(ConfigError, match=f"1 to {254 if has_background else 255} classes besides background, but got"):
        ClassSet(names, has_background)  # the last one would be 255


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_name_in_the_catalog_is_a_class(name: str):
    info = get_dataset(name)
    assert info.name == name
    pairs = [word for pair in info.adjacent for word in pair] + [word for _, word in info.background_pairs]
    assert set(pairs) | set(info.head) | set(info.tail) <= set(info.classes.tag_names)
    assert {stuff for stuff, _ in info.background_pairs} <= set(info.stuff_names)
    assert not set(info.head) & set(info.tail)


def test_an_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'imagenet'.*microworld, voc"):
        get_dataset("imagenet")
