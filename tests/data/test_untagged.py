from pathlib import Path

import pytest

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datasets.voc import read_voc
from dhr_lightning.data.untagged import UNTAGGED_POLICIES, apply_untagged_policy, usable_images
from dhr_lightning.errors import ConfigError, TagError

CLASSES = ClassSet(("background", "cat", "dog"))


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(f"image_{index}", Path("x.jpg"), values) for index, values in enumerate(tags)]


def test_drop_leaves_the_tagged_ones_in_order():
    kept, count = apply_untagged_policy(records((), (1,), (), (1, 2)), CLASSES, policy="drop")
    assert [record.id for record in kept] == ["image_1", "image_3"]
    assert count == 2


def test_background_keeps_everything_and_counts():
    rows = records((), (1,), ())
    assert apply_untagged_policy(rows, CLASSES, policy="background") == (rows, 2)


def test_error_counts_and_names_the_first():
    with pytest.raises(TagError, match="2 of 3 training images have no tag, first 'image_1'"):
        apply_untagged_policy(records((1,), (), ()), CLASSES, policy="error")


@pytest.mark.parametrize("policy", UNTAGGED_POLICIES)
@pytest.mark.parametrize("has_background", [True, False])
def test_no_policy_touches_a_fully_tagged_set(policy: str, has_background: bool):
    rows = records((1,), (1, 2))
    classes = ClassSet(("first", "second", "third"), has_background)
    assert apply_untagged_policy(rows, classes, policy=policy) == (rows, 0)


def test_background_needs_a_background_class():
    with pytest.raises(ConfigError, match="needs a background class"):
        apply_untagged_policy(records((0,), ()), ClassSet(("cat", "dog"), has_background=False), policy="background")


def test_value_zero_is_a_tag_where_there_is_no_background():
    classes = ClassSet(("cat", "dog"), has_background=False)
    kept, count = apply_untagged_policy(records((0,), ()), classes, policy="drop")
    assert [record.id for record in kept] == ["image_0"]
    assert count == 1


def test_nothing_left_is_an_error():
    with pytest.raises(TagError, match="None of the 2 training images has a tag"):
        apply_untagged_policy(records((), ()), CLASSES, policy="drop")


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="drop, background, error, but got 'skip'"):
        apply_untagged_policy(records((1,)), CLASSES, policy="skip")


def test_policies_on_files(voc_copy: Path, voc_classes: ClassSet):
    (voc_copy / "Annotations" / "2007_000003.xml").unlink()
    found = read_voc(voc_copy, "train", voc_classes)
    assert len(apply_untagged_policy(found, voc_classes, policy="drop")[0]) == 3
    assert len(apply_untagged_policy(found, voc_classes, policy="background")[0]) == 4
    with pytest.raises(TagError, match="2007_000003"):
        apply_untagged_policy(found, voc_classes, policy="error")


@pytest.mark.parametrize("policy", UNTAGGED_POLICIES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_policy_concerns_training_only(split: str, policy: str):
    rows = records((), (1,), ())
    assert usable_images(rows, split, CLASSES, policy=policy) == rows
    assert usable_images(records((), ()), split, CLASSES, policy=policy) == records((), ())
    without = ClassSet(("cat", "dog"), has_background=False)
    assert usable_images(rows, split, without, policy=policy) == rows
    assert usable_images(rows, "train", CLASSES, policy="drop") == rows[1:2]
