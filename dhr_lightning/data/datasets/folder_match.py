"""Which image a name in a table or list means, and which split an image belongs to."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from dhr_lightning.data.catalog import SPLITS, TAGGED_SPLITS
from dhr_lightning.data.datasets.tag_table import (
    TagRow,
    TagTable,
    by_composed_name,
    composed,
    merge_rows,
)
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES, unread_reason
from dhr_lightning.errors import DataError


class Unmatched(NamedTuple):
    """A name without an image; `reason` says why a file of that name is not read, and is empty where there is none."""

    name: str
    where: str
    reason: str = ""


class Matcher:
    """Find the image that a name in a table or list means.

    Args:
        root: the user's folder.
        photos: the folder of photos in it.
        images: files by id.
    """

    def __init__(self, root: Path, photos: Path, images: Mapping[str, Path]) -> None:
        self._bases = [base.resolve().as_posix() for base in (photos, root)]
        self._folders = (photos, root)
        self.images = images
        self._ids = by_composed_name(images)
        self._prefix = f"{os.path.relpath(photos, root)}/".replace(os.sep, "/")

    def find(self, name: str, where: str) -> str | None:
        """Id of the image, or `None`: `name` is an id, a file name, a path below the folder, or an absolute path in it.

        Raises:
            DataError: if the path leads out of the folder.
        """
        text = name.replace("\\", "/")
        inside = next((text[len(base) + 1 :] for base in self._bases if text.startswith(f"{base}/")), None)
        path = PurePosixPath(text if inside is None else inside)
        outside = inside is None and (path.is_absolute() or PureWindowsPath(text).drive)
        if outside or ".." in path.parts:
            raise DataError(f"{where}: {name!r} leads out of {self._bases[-1]}. Name a file inside that folder.")
        spelled = path.as_posix()
        for text in (spelled, spelled.removeprefix(self._prefix)):
            stem = PurePosixPath(text)
            for image_id in (text, str(stem.with_suffix("")) if stem.suffix.casefold() in IMAGE_SUFFIXES else text):
                if found := self._ids.get(composed([image_id])[0]):
                    return found
        return None

    def unread(self, name: str) -> str:
        """Why the file of this name is not read as a photo; empty where there is no such file."""
        paths = [folder / name.replace("\\", "/") for folder in self._folders]
        return next((why for path in paths if (why := unread_reason(path)) and path.is_file()), "")

    def hint(self, name: str) -> str:
        """An image that may be meant: another case, or another sub-folder."""
        stem = PurePosixPath(name.replace("\\", "/")).stem.casefold()
        closest = next((one for one in self.images if PurePosixPath(one).name.casefold() == stem), None)
        return f" Did you mean {closest!r}?" if closest else ""


def match_rows(table: TagTable, matcher: Matcher) -> tuple[dict[str, TagRow], int, list[Unmatched]]:
    """Rows by image id, how many named an image again (they are merged), and the rows without an image."""
    rows: dict[str, TagRow] = {}
    merged, unmatched = 0, []
    for row in table.rows:
        where = f"{table.path}, line {row.line}"
        image_id = matcher.find(row.image, where)
        if image_id is None:
            unmatched.append(Unmatched(row.image, where, matcher.unread(row.image)))
            continue
        merged += image_id in rows
        rows[image_id] = merge_rows(table.path, rows[image_id], row) if image_id in rows else row
    return rows, merged, unmatched


def has_test_split(root: Path, table: TagTable) -> bool:
    """Whether the column `split` of the table, or else a list `test.txt`, names test images."""
    if table.has_splits:
        return any(row.split == "test" for row in table.rows)
    return (root / "test.txt").is_file()


def choose_splits(
    root: Path, rows: Mapping[str, TagRow], table: TagTable, matcher: Matcher, *, holdout: float
) -> tuple[dict[str, str], str, list[Unmatched]]:
    """Split of every image: from the table's column, else `train.txt`, `val.txt`, `test.txt`, else by a hash of the id.

    With one of `train.txt` and `val.txt` alone, the other split is the rest; with neither, a hash divides what
    `test.txt` does not name. Images that no list names are in no split.

    Args:
        root: the user's folder.
        rows: rows by image id.
        table: the table.
        matcher: knows the images.
        holdout: share in [0, 1) kept for validation where nothing else decides.

    Returns:
        Split by id, where it comes from in words, and the lines of lists without an image.

    Raises:
        DataError: if two sources say the splits, or an image is in two lists.
    """
    images = matcher.images
    lists = {name: root / f"{name}.txt" for name in SPLITS if (root / f"{name}.txt").is_file()}
    if lists and table.has_splits:
        raise DataError(f"Both {next(iter(lists.values()))} and the column `split` of {table.path} say the splits.")
    if table.has_splits:
        return {one: (rows[one].split or "train") if one in rows else "train" for one in images}, "column `split`", []
    listed, lost = _read_lists(lists, matcher)
    source = " and ".join(f"{name}.txt" for name in lists)
    unlisted = [name for name in TAGGED_SPLITS if name not in lists]
    if len(unlisted) == len(TAGGED_SPLITS):
        rest = {one: "val" if held_out(one, holdout) else "train" for one in images}
        hashed = f"{100 * holdout:g} % held out by a hash of the id"
        return {**rest, **listed}, f"{source}, else {hashed}" if source else hashed, lost
    rest = dict.fromkeys(images, unlisted[0] if unlisted else "none")
    return {**rest, **listed}, source, lost


def _read_lists(lists: Mapping[str, Path], matcher: Matcher) -> tuple[dict[str, str], list[Unmatched]]:
    listed: dict[str, str] = {}
    lost = []
    for split, path in lists.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The list {path} cannot be read ({error}). Write one image per line.") from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            image_id = matcher.find(line.strip(), where)
            if image_id is None:
                lost.append(Unmatched(line.strip(), where, matcher.unread(line.strip())))
            elif listed.setdefault(image_id, split) != split:
                raise DataError(f"{where}: {image_id!r} is in {listed[image_id]}.txt too. An image has one split.")
    return listed, lost


def held_out(image_id: str, share: float) -> bool:
    """Whether an image is kept for validation; the answer depends on its id alone, whatever other images there are."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") < share * 2**64
