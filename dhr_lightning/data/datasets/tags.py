"""Names of tags as class values, and tags from masks."""

import difflib

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import TagError


def tag_value(name: str, classes: ClassSet, where: str) -> int:
    """Class value of a tag.

    Raises:
        TagError: if it is no foreground class; names `where` and the nearest known class.
    """
    if name not in classes.tag_names:
        closest = difflib.get_close_matches(name, classes.tag_names, n=1)
        hint = f" Did you mean {closest[0]!r}?" if closest else ""
        raise TagError(f"Unknown tag {name!r} in {where}.{hint} Known: {', '.join(classes.tag_names)}.")
    return classes.names.index(name)


def is_path(image_id: str) -> bool:
    """Whether an id is no plain file name: as a name of a file to write it could lead anywhere."""
    return not image_id or image_id.startswith(".") or "/" in image_id or "\\" in image_id


def mask_tags(mask: npt.NDArray[np.uint8], classes: ClassSet) -> tuple[int, ...]:
    """Class values in a mask `(H, W)`, without background and ignore, ascending."""
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return tuple(value for value in present if classes.offset <= value < classes.num_classes)
