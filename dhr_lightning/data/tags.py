"""Names of tags as class values, and how far two sources of tags agree."""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import read_truth
from dhr_lightning.errors import TagError
from dhr_lightning.progress import track


def tag_value(name: str, classes: ClassSet, where: str) -> int:
    """Class value of a tag.

    Raises:
        TagError: if it is no foreground class; names `where` and the nearest known class.
    """
    if name not in classes.tag_names:
        near = difflib.get_close_matches(name, classes.tag_names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TagError(f"Unknown tag {name!r} in {where}.{hint} Known: {', '.join(classes.tag_names)}.")
    return classes.names.index(name)


def is_path(image_id: str) -> bool:
    """Whether an id is no plain file name: as a name of a file to write it could lead anywhere."""
    return not image_id or image_id.startswith(".") or "/" in image_id or "\\" in image_id


def mask_tags(mask: npt.NDArray[np.uint8], classes: ClassSet) -> tuple[int, ...]:
    """Class values in a mask `(H, W)`, without background and ignore, ascending."""
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return tuple(value for value in present if classes.offset <= value < classes.num_classes)


@dataclass(frozen=True)
class Disagreement:
    """Where the tags of images and the classes in their masks differ.

    Args:
        compared: images that have a mask.
        differing: ids of those whose tags and mask name other classes, in order.
        tag_only: images per class name that is tagged, but not in the mask.
        mask_only: images per class name that is in the mask, but not tagged.
    """

    compared: int
    differing: tuple[str, ...]
    tag_only: dict[str, int]
    mask_only: dict[str, int]

    def describe(self) -> str:
        """One sentence for people."""
        if not self.differing:
            return f"tags and masks agree on all {self.compared} images that have a mask"
        return (
            f"tags and masks differ on {len(self.differing)} of {self.compared} images, first {self.differing[0]}: "
            f"{sum(self.tag_only.values())} tags without a pixel ({_most(self.tag_only)}), "
            f"{sum(self.mask_only.values())} classes without a tag ({_most(self.mask_only)})"
        )


def tag_disagreement(records: Sequence[Record], classes: ClassSet) -> Disagreement:
    """Compare tags with masks, for information only: masks never teach tags.

    Args:
        records: images; those without a mask are left out.
        classes: class list.

    Raises:
        MaskError: if a mask cannot be read.
    """
    tag_only, mask_only = Counter[str](), Counter[str]()
    differing = []
    compared = [record for record in records if record.mask is not None]
    for record in track(compared, "comparing tags"):
        assert record.mask is not None
        tags, seen = set(record.tags), set(mask_tags(read_truth(record.mask), classes))
        if tags != seen:
            differing.append(record.id)
        tag_only.update(classes.names[value] for value in tags - seen)
        mask_only.update(classes.names[value] for value in seen - tags)
    return Disagreement(len(compared), tuple(differing), dict(tag_only), dict(mask_only))


def _most(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
    return ", ".join(f"{name} {count}" for name, count in ordered) or "none"
