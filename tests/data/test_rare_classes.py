"""Images of rare classes come more often in training, and nowhere else."""

from collections import Counter
from pathlib import Path

import pytest

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.rare_classes import images_of_each_class, repeat_rare
from dhr_lightning.errors import ConfigError
from tests.data.datamodules import make_datamodule
from tests.stand_ins import TAGS


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(str(index), Path(f"{index}.jpg"), classes) for index, classes in enumerate(tags)]


def repeats(found: list[Record]) -> list[int]:
    counts = Counter(int(record.id) for record in found)
    return [counts[index] for index in range(max(counts) + 1)]


def test_an_image_is_repeated_by_the_factor_of_its_rarest_tag():
    """Class 2 is in one of 16 images: sqrt(0.25 / (1 / 16)) = 2; class 1 is in all: 1."""
    found = repeat_rare(records((1, 2), *[(1,)] * 15), 0.25)
    assert repeats(found) == [2] + [1] * 15


def test_a_fraction_is_one_more_repetition_of_that_share_of_the_images():
    """Class 2 is in a quarter of the images: sqrt(0.5625 / 0.25) = 1.5."""
    found = repeats(repeat_rare(records(*[(2,)] * 1000, *[(1,)] * 3000), 0.5625))
    assert set(found[:1000]) == {1, 2}
    assert abs(sum(found[:1000]) - 1500) < 60
    assert found[1000:] == [1] * 3000


def test_images_stay_in_order_and_a_tag_that_is_named_twice_counts_once():
    found = repeat_rare(records((1,), (2, 2), (1,), (1,)), 1.0)
    assert [record.id for record in found] == sorted(record.id for record in found)
    assert repeats(repeat_rare(records((2, 2), *[(1,)] * 15), 0.25)) == [2] + [1] * 15


def test_nothing_is_repeated_without_a_threshold_nor_are_images_without_tags():
    assert repeat_rare(records((1,), (2,), ()), 0.0) == records((1,), (2,), ())
    assert repeats(repeat_rare(records((), *[(1,)] * 15), 1.0)) == [1] * 16


def test_the_choice_depends_on_the_seed_alone():
    images = records(*[(2,)] * 40, *[(1,)] * 120)
    assert repeat_rare(images, 0.5625, seed=1) == repeat_rare(images, 0.5625, seed=1)
    assert repeat_rare(images, 0.5625, seed=1) != repeat_rare(images, 0.5625, seed=2)


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_a_threshold_out_of_range_is_refused(threshold: float):
    with pytest.raises(ConfigError, match=r"repeat_rare in \[0, 1\], but got"):
        repeat_rare(records((1,)), threshold)


def test_training_shows_rare_classes_more_often_and_prediction_every_image_once(tiny_voc: Path, tmp_path: Path):
    datamodule = make_datamodule(tiny_voc, tmp_path, repeat_rare=1.0, batch_size=1)
    epoch = Counter(name for batch in datamodule.train_dataloader() for name in batch["id"])
    assert [epoch[name] for name in list(TAGS)[1:]] == [2, 2, 2]  # classes of one image in four; the first is in two
    whole = datamodule.whole_dataloader(datamodule.records("train"))
    assert [name for batch in whole for name in batch["id"]] == list(TAGS)


def test_every_class_has_some_images_however_rare_it_is():
    """Class 1 is in all of 20 images, class 2 in the last one and class 3 in the two before."""
    images = records(*[(1,)] * 17, (1, 3), (1, 3), (1, 2))
    assert [record.id for record in images_of_each_class(images, 2)] == ["0", "10", "17", "18", "19"]
    assert images_of_each_class(images, 100) == images
    untagged = Record("untagged", Path("untagged.jpg"), ())
    assert images_of_each_class([*images, untagged], 100) == images
