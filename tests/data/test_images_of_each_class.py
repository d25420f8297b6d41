"""Training images in which every class is shown by some."""

from pathlib import Path

from dhr_lightning.data.catalog import Record, images_of_each_class


def records(*tags: tuple[int, ...]) -> list[Record]:
    return [Record(str(index), Path(f"{index}.jpg"), classes) for index, classes in enumerate(tags)]


def test_every_class_has_some_images_however_rare_it_is():
    """Class 1 is in all of 20 images, class 2 in the last one and class 3 in the two before."""
    images = records(*[(1,)] * 17, (1, 3), (1, 3), (1, 2))
    assert [record.id for record in images_of_each_class(images, 2)] == ["0", "10", "17", "18", "19"]
    assert images_of_each_class(images, 100) == images
    untagged = Record("untagged", Path("untagged.jpg"), ())
    assert images_of_each_class([*images, untagged], 100) == images
