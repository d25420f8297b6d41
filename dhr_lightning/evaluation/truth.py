"""What the report compares artifacts with: images, tags and, where the dataset has them, masks and background maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.data.files import read_gt_mask, read_image, read_truth
from dhr_lightning.errors import ConfigError

UInt8 = npt.NDArray[np.uint8]


class GroundTruth(Protocol):
    """Images, tags and optional masks of one dataset; a subclass inherits the defaults of everything optional.

    Attributes:
        classes: class list.
        dataset: name shown in the report.
        adjacent: pairs (minor class, large neighbour); the minor one is the one that propagation tends to erase.
        stuff_names: names of the values of the background map; empty when there is none.
        background_pairs: pairs (stuff, class) that are reported whatever their rate.
        head: frequent classes; empty = the top third by tagged training images.
        tail: rare classes; empty = the bottom third.
    """

    classes: ClassSet
    dataset: str
    adjacent: tuple[tuple[str, str], ...] = ()
    stuff_names: tuple[str, ...] = ()
    background_pairs: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in the order of its list."""
        ...

    def image(self, split: str, image_id: str) -> UInt8:
        """Image `(H, W, 3)` uint8 RGB."""
        ...

    def mask(self, split: str, image_id: str) -> UInt8 | None:
        """True mask `(H, W)` of class values, or `None` if the image has none."""
        ...

    def tags(self, split: str, image_id: str) -> set[int]:
        """Class values of the tags of an image."""
        ...

    def stuff(self, split: str, image_id: str) -> UInt8 | None:
        """Background map `(H, W)` of indices into `stuff_names`; larger values are skipped."""
        return None


class DatasetTruth(GroundTruth):
    """Ground truth of a dataset of the catalog, read from the files its reader lists.

    Args:
        info: the catalog entry.
        root: folder of the dataset; the catalog's own when not given.
    """

    def __init__(self, info: DatasetInfo, root: Path | None = None) -> None:
        self.classes = info.classes
        self.dataset = info.name
        self.adjacent = info.adjacent
        self.stuff_names = info.stuff_names
        self.background_pairs = info.background_pairs
        self.head = info.head
        self.tail = info.tail
        folder = info.root if root is None else root
        self._records = cache(lambda split: {record.id: record for record in info.read(folder, split, info.classes)})

    def _record(self, split: str, image_id: str) -> Record:
        record: Record = self._records(split)[image_id]
        return record

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in the order of its list."""
        return list(self._records(split))

    def image(self, split: str, image_id: str) -> UInt8:
        """Image `(H, W, 3)` uint8 RGB."""
        return np.asarray(read_image(self._record(split, image_id).image))

    def mask(self, split: str, image_id: str) -> UInt8 | None:
        """True mask `(H, W)` of class values, or `None` if the image has none."""
        return read_gt_mask(self._record(split, image_id))

    def tags(self, split: str, image_id: str) -> set[int]:
        """Class values of the tags of an image."""
        return set(self._record(split, image_id).tags)

    def stuff(self, split: str, image_id: str) -> UInt8 | None:
        """Background map `(H, W)` of indices into `stuff_names`."""
        path = self._record(split, image_id).stuff if self.stuff_names else None
        return None if path is None else read_truth(path)


@dataclass(frozen=True)
class TruthFacts:
    """Names of a ground truth resolved to class values.

    Args:
        names: class names by value.
        offset: value of the first tag.
        ignore_index: mask value that is not scored.
        adjacent: pairs (minor, large neighbour) of class values.
        stuff_names: names of the background map.
        background_pairs: pairs (stuff index, class value) that are always reported.
        tag_counts: tagged training images per class value; zeros where no train split is known.
        head: class values of the frequent third.
        tail: class values of the rare third.
    """

    names: tuple[str, ...]
    offset: int
    ignore_index: int
    adjacent: tuple[tuple[int, int], ...]
    stuff_names: tuple[str, ...]
    background_pairs: tuple[tuple[int, int], ...]
    tag_counts: tuple[int, ...]
    head: tuple[int, ...]
    tail: tuple[int, ...]


def resolve_truth(truth: GroundTruth, *, train_split: str = "train") -> TruthFacts:
    """Look up every name that a ground truth mentions, and count its training tags.

    Args:
        truth: the ground truth.
        train_split: split whose tags define frequent and rare classes.

    Returns:
        The resolved facts. Without `head` or `tail` lists, the top and bottom third of the tag counts are used
        (ties in class order); with fewer than three tags both stay empty.

    Raises:
        ConfigError: if a name is unknown.
    """
    classes = truth.classes
    counts = np.zeros(classes.num_classes, np.int64)
    for image_id in truth.ids(train_split):
        counts[sorted(truth.tags(train_split, image_id))] += 1
    order = classes.offset + np.argsort(-counts[classes.offset :], kind="stable")
    third = classes.num_tags // 3
    head, tail = ([int(v) for v in part] for part in (order[:third], order[len(order) - third :]))
    return TruthFacts(
        names=classes.names,
        offset=classes.offset,
        ignore_index=classes.ignore_index,
        adjacent=tuple((_index(a, classes.names), _index(b, classes.names)) for a, b in truth.adjacent),
        stuff_names=truth.stuff_names,
        background_pairs=tuple(
            (_index(stuff, truth.stuff_names), _index(name, classes.names)) for stuff, name in truth.background_pairs
        ),
        tag_counts=tuple(int(count) for count in counts),
        head=tuple(_index(name, classes.names) for name in truth.head) or tuple(head),
        tail=tuple(_index(name, classes.names) for name in truth.tail) or tuple(tail),
    )


def _index(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise ConfigError(f"Unknown name {name!r} in the ground truth. Known: {', '.join(names)}.")
    return names.index(name)
