"""Tags and lists of the IRNet family as `tags.csv` and plain id lists."""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.tag_table import by_composed_name, composed
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES
from dhr_lightning.errors import ConfigError, DataError, TagError
from dhr_lightning.importing.pickles import read_pickled_dict

_VOC_YEARS = range(2007, 2013)
_COCO_PREFIXES = ("", "COCO_train2014_", "COCO_val2014_")


class ListedImage(NamedTuple):
    """One line of a list: the image and, where the line has them, its tags counted from 0."""

    id: str
    tags: tuple[int, ...] | None
    line: int


def read_list(path: Path) -> list[ListedImage]:
    """Read a list of the family: ids, pairs of paths (`/JPEGImages/a.jpg /Masks/a.png`) or ids and tags (`a 0 14`).

    Raises:
        DataError: if the file cannot be read, is empty or repeats an id.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The list {path} cannot be read ({error}). Give a text file with one image per line."
        ) from error
    found: dict[str, ListedImage] = {}
    for number, line in enumerate(lines, start=1):
        first, *others = line.split() or [""]
        if not first:
            continue
        name = PurePosixPath(first.replace("\\", "/")).name
        image_id = str(PurePosixPath(name).with_suffix("")) if name.lower().endswith(IMAGE_SUFFIXES) else name
        if image_id in found:
            raise DataError(f"{path}, line {number} repeats {image_id!r} of line {found[image_id].line}. Remove one.")
        numbers = tuple(int(word) for word in others if word.isdecimal())
        tagged = bool(others) and len(numbers) == len(others)
        found[image_id] = ListedImage(image_id, numbers if tagged else None, number)
    if not found:
        raise DataError(f"The list {path} names no image. Give a text file with one image per line.")
    return list(found.values())


def read_tags(path: Path, classes: ClassSet) -> dict[object, tuple[str, ...]]:
    """Tag names by image, from `cls_labels.npy` (read without running pickled code) or a list with numbers.

    Raises:
        DataError: if the file is of another form.
        TagError: if a vector or number does not fit the class list.
    """
    if path.suffix != ".npy":
        return _tags_of_list(path, classes)
    tags: dict[object, tuple[str, ...]] = {}
    for key, value in read_pickled_dict(path).items():
        vector = np.asarray(value)
        if vector.shape != (classes.num_tags,) or not np.isin(vector, (0, 1)).all():
            raise TagError(
                f"{path}: the entry {key!r} has shape {vector.shape} and values {np.unique(vector)[:4].tolist()}; "
                f"expected 0 and 1 for the {classes.num_tags} classes. Choose the --data it was made for."
            )
        tags[key] = tuple(classes.tag_names[index] for index in np.flatnonzero(vector))
    return tags


def _tags_of_list(path: Path, classes: ClassSet) -> dict[object, tuple[str, ...]]:
    tags: dict[object, tuple[str, ...]] = {}
    for image in read_list(path):
        if image.tags is None:
            raise TagError(
                f"{path}, line {image.line} names an image and no tag numbers. "
                "Import it with `import ids`, and the tags from `cls_labels.npy`."
            )
        if any(tag >= classes.num_tags for tag in image.tags):
            raise TagError(f"{path}, line {image.line}: tags {image.tags} count {classes.num_tags} classes from 0.")
        tags[image.id] = tuple(classes.tag_names[tag] for tag in image.tags)
    return tags


def compare_tags(imported: Mapping[str, Sequence[str]], own: Mapping[str, Sequence[str]]) -> str:
    """One sentence on how two sources of tags differ, over the images that both have; it decides nothing.

    Args:
        imported: tag names by image id, of the imported file.
        own: the same of the dataset.
    """
    both = [image_id for image_id in imported if image_id in own]
    differing = [image_id for image_id in both if set(imported[image_id]) != set(own[image_id])]
    if not differing:
        return f"both sources of tags agree on all {len(both)} images that they share"
    only_imported = Counter(name for image_id in both for name in set(imported[image_id]) - set(own[image_id]))
    only_own = Counter(name for image_id in both for name in set(own[image_id]) - set(imported[image_id]))
    return (
        f"tags differ on {len(differing)} of {len(both)} images, first {differing[0]}: {_most(only_imported)} only in "
        f"the imported file, {_most(only_own)} only in the dataset"
    )


def _most(counts: Counter[str]) -> str:
    names = ", ".join(f"{name} {count}" for name, count in counts.most_common(3))
    return f"{counts.total()} ({names})" if counts else "none"


def match_keys(keys: Iterable[object], known: Collection[str]) -> tuple[dict[object, str], list[object]]:
    """Image ids of the keys of a dictionary.

    The family writes VOC ids as numbers (`2007_000032` as 2007000032) and COCO ids with or without zeros and prefix.

    Args:
        keys: numbers or texts.
        known: ids of the images that are there; empty where that is not known, and then the likeliest spelling is used.

    Returns:
        Ids by key, and the keys without an image.
    """
    found, lost = {}, []
    composed_ids = by_composed_name(known)  # two Unicode forms of one name are one name
    for key in keys:
        spellings = composed(_spellings(key))
        image_id = next((composed_ids[text] for text in spellings if text in composed_ids), None)
        image_id = image_id if known else spellings[0]
        if image_id is None:
            lost.append(key)
        else:
            found[key] = image_id
    return found, lost


def write_tag_table(path: Path, tags: Mapping[str, Sequence[str]]) -> None:
    """Write `image,tags` with one row per image, sorted, atomically."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("image", "tags"))
    writer.writerows((image_id, ";".join(names)) for image_id, names in sorted(tags.items()))
    write_bytes(path, buffer.getvalue().encode())


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to overwrite a file unless told to.

    Raises:
        ConfigError: if it exists, or its folder does not.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists. Choose another --output, or overwrite it with --force.")
    if not path.parent.is_dir():
        raise ConfigError(f"The folder {path.parent} does not exist. Make it or choose another --output.")


def _spellings(key: object) -> list[str]:
    text = str(key)
    if not text.isdecimal():
        return [text]
    voc = [f"{text[:4]}_{text[4:]}"] if len(text) == 10 and int(text[:4]) in _VOC_YEARS else []
    return [*voc, text, *(f"{prefix}{int(text):012d}" for prefix in _COCO_PREFIXES)]
