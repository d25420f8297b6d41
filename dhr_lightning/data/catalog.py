"""Classes, splits and readers of the known datasets: the one place for class bookkeeping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dhr_lightning.errors import ConfigError

Item = TypeVar("Item")

IGNORE_INDEX = 255
SPLITS = ("train", "val", "test")  # in this order everywhere; not every dataset has `test`
TAGGED_SPLITS = SPLITS[:2]  # `test` has images only


def voc_palette() -> npt.NDArray[np.uint8]:
    """The PASCAL VOC colour map: `(256, 3)` uint8, bits of the id interleaved into R, G, B."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


@dataclass(frozen=True)
class ClassSet:
    """Names and numbers of the classes of one dataset.

    Class values are indices into `names`; tags count foreground only, so `value = tag + offset`.

    Args:
        names: all classes, background first if there is one.
        has_background: whether value 0 is background. Context, ADE and Stuff have none: there 0 is a real class.
        ignore_index: the mask value that is neither trained nor scored.
        colours: RGB of each class for pictures; default: the VOC colour map.
    """

    names: tuple[str, ...]
    has_background: bool = True
    ignore_index: int = IGNORE_INDEX
    colours: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"Class names repeat: {', '.join(self.names)}. Give each class its own name.")
        if self.num_tags < 1 or self.num_classes > self.ignore_index:
            raise ConfigError(
                f"Expected 1 to {self.ignore_index - self.offset} classes besides background, but got {self.num_tags}."
            )

    @property
    def offset(self) -> int:
        """Value of the first tag: 1 with background, else 0."""
        return int(self.has_background)

    @property
    def num_classes(self) -> int:
        """Number of classes including background."""
        return len(self.names)

    @property
    def num_tags(self) -> int:
        """Number of classes that can be tags."""
        return len(self.names) - self.offset

    @property
    def tag_names(self) -> tuple[str, ...]:
        """Names of the foreground classes, in tag order."""
        return self.names[self.offset :]

    @cached_property
    def palette(self) -> npt.NDArray[np.uint8]:
        """Colours `(256, 3)`: the VOC map, shifted by one where there is no background, ignore in cream."""
        palette = voc_palette()
        if not self.has_background:
            palette = np.roll(palette, -1, axis=0)
        palette[: len(self.colours)] = np.array(self.colours, np.uint8).reshape(-1, 3)
        palette[self.ignore_index] = (224, 224, 192)
        return palette


@dataclass(frozen=True)
class Record:
    """One image on disk: its id, files and tags (as class values, ascending).

    `gt_values` gives the class value of each of the 256 values of the mask file, where they differ.
    """

    id: str
    image: Path
    tags: tuple[int, ...]
    gt_mask: Path | None = None
    stuff: Path | None = None
    gt_values: bytes | None = None


def without_truth(records: Sequence[Record]) -> list[Record]:
    """Records of a test split: images alone, whatever else lies beside them."""
    return [replace(record, tags=(), gt_mask=None, stuff=None) for record in records]


def _no_test(root: Path) -> bool:
    return False


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before looking at its files.

    Args:
        name: the key in the catalog; also the folder name of its artifacts.
        classes: class list.
        read: `(root, split, classes) -> records`; those of `test` have neither tags nor `gt_mask`.
        root: default folder.
        has_test: whether the files at a root hold a test split.
        prepare: `(root, options)`; makes what `read` needs of the files that the user brings, and nothing where it is
            there: every run calls it. `None` where `read` takes the files as they are, or only the command `prepare`
            does the work.
        is_builtin: whether `prepare` draws the images, so that they are no photos.
        adjacent: pairs (minor, large neighbour) whose minor class propagation tends to lose.
        background_pairs: pairs (stuff, class) that co-occur so often that a class activation map confuses them.
        head: frequent classes of the long tail.
        tail: rare classes of the long tail.
        stuff_names: names of the extra background map, if the dataset has one.
        own_classes: whether the class list is the user's; it is then part of the identity of every artifact.
    """

    name: str
    classes: ClassSet
    read: Callable[[Path, str, ClassSet], list[Record]]
    root: Path
    has_test: Callable[[Path], bool] = _no_test
    prepare: Callable[[Path, Mapping[str, Any]], None] | None = None
    is_builtin: bool = False
    adjacent: tuple[tuple[str, str], ...] = ()
    background_pairs: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    stuff_names: tuple[str, ...] = field(default=())
    own_classes: bool = False

    def splits(self, root: Path) -> tuple[str, ...]:
        """Splits that the dataset has at a root: `train`, `val`, and `test` where there is one."""
        return SPLITS if self.has_test(root) else TAGGED_SPLITS


def refuse_options(dataset: str, options: Mapping[str, Any]) -> None:
    """Refuse `data.options` of a dataset that has none.

    Raises:
        ConfigError: names the first.
    """
    if options:
        raise ConfigError(f"{dataset} has no data.options, but got {sorted(options)[0]!r}. Remove it.")


def tags_to_multi_hot(tags: Sequence[int], classes: ClassSet) -> npt.NDArray[np.float32]:
    """Class values -> multi-hot `(T,)` float32 over foreground."""
    vector = np.zeros(classes.num_tags, np.float32)
    vector[[tag - classes.offset for tag in tags]] = 1.0
    return vector


def subsample_evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spread over the list."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else list(items)


def images_of_each_class(records: Sequence[Record], count: int) -> list[Record]:
    """Training images in which every class is shown by some, however rare it is.

    Args:
        records: training images.
        count: images of each class, evenly over the list; all of a class that has fewer. > 0.

    Returns:
        Their union, each once, in the order of the list.
    """
    by_class: dict[int, list[Record]] = {}
    for record in records:
        for tag in record.tags:
            by_class.setdefault(tag, []).append(record)
    chosen = {record.id for images in by_class.values() for record in subsample_evenly(images, count)}
    return [record for record in records if record.id in chosen]
