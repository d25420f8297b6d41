"""Read a table of tags: long (`image,tag`), list (`image,"cat;dog"`) or one-hot (`image,cat,dog,...`)."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from dhr_lightning.data.datasets.tag_exports import plain_lines
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES
from dhr_lightning.errors import DataError, TagError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SEPARATOR = ";"
_IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "image_id", "id")
_TAG_COLUMNS = ("tag", "tags", "label", "labels", "class", "classes", "target", "targets")
_TRUE, _FALSE = ("1", "1.0", "true", "yes", "x"), ("", "0", "0.0", "false", "no")


@dataclass(frozen=True)
class TagRow:
    """One row of a table.

    Args:
        image: the name as the table has it.
        tags: its tags, each once, in the order of the row.
        line: line in the file, from 1.
        split: `train`, `val`, `test`, or `None` where the table has no such column.
        negative: whether the row says that the image shows none of the classes, and not only nothing.
    """

    image: str
    tags: tuple[str, ...]
    line: int
    split: str | None = None
    negative: bool = False


@dataclass(frozen=True)
class TagTable:
    """A whole table.

    Args:
        path: the file.
        form: `long`, `list` or `one-hot`.
        rows: in the order of the file; an image may have several.
        names: every tag and the line where it first appears, sorted by name.
        has_splits: whether there is a `split` column.
    """

    path: Path
    form: str
    rows: tuple[TagRow, ...]
    names: tuple[tuple[str, int], ...]
    has_splits: bool


@dataclass(frozen=True)
class _Columns:
    image: int
    split: int | None
    tags: int | None
    one_hot: tuple[tuple[int, str], ...]
    count: int
    separator: str
    nothing: tuple[str, ...]


def read_tag_table(path: Path, *, separator: str = SEPARATOR, nothing: tuple[str, ...] = ()) -> TagTable:
    """Read a table of tags; the form follows from its header.

    The header names the image column (`image`, `file_name`, ...), then either one tag column (`tag`, `tags`, ...) or
    one column per class, and optionally `split`. Commas, semicolons or tabs separate columns; a byte order mark, CRLF
    and blank lines are fine. An image may have several rows: see `merge_rows`. Names are in Unicode's composed form
    (NFC), whatever form the file has.

    Args:
        path: the file.
        separator: between the tags of a cell.
        nothing: tags that mean that an image shows none of the classes; they are taken out.

    Raises:
        DataError: if the file is missing, not UTF-8, has no usable header or no row, or a row has too many cells or an
            unknown split.
        TagError: if a one-hot cell is neither 0 nor 1, a tag holds a comma, or two tags look alike.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"There is no table of tags at {path} ({error.strerror}). Write one: `image,tags`.") from error
    return _read(path, state.st_size, state.st_mtime_ns, separator, composed(nothing))


@lru_cache(maxsize=8)
def _read(path: Path, size: int, modified: int, separator: str, nothing: tuple[str, ...]) -> TagTable:
    lines = _cells(path)
    if not lines:
        raise DataError(f"{path} is empty. Its first line is a header such as `image,tags`.")
    lines = plain_lines(path, lines, separator=separator)
    columns = _columns(path, *lines[0], separator=separator, nothing=nothing)
    rows = tuple(_row(path, line, cells, columns) for line, cells in lines[1:])
    if not rows:
        raise DataError(f"{path} has a header and no row. Add one row per image.")
    first_line = {name: lines[0][0] for _, name in columns.one_hot if name not in nothing}
    for row in rows:
        for tag in row.tags:
            first_line.setdefault(tag, row.line)
    names = tuple(sorted(first_line.items()))
    _check_names(path, names)
    repeated = len({row.image for row in rows}) < len(rows)
    single = all(len(row.tags) <= 1 for row in rows)
    form = "one-hot" if columns.one_hot else "long" if repeated and single else "list"
    return TagTable(path, form, rows, names, columns.split is not None)


def merge_rows(path: Path, first: TagRow, again: TagRow) -> TagRow:
    """Join two rows of one image: all tags of both.

    Raises:
        DataError: if they name different splits.
    """
    if first.split != again.split:
        raise DataError(
            f"{path}, line {again.line}: {again.image!r} is in split {again.split}, but line {first.line} says "
            f"{first.split}. Give an image one split."
        )
    tags = tuple(dict.fromkeys((*first.tags, *again.tags)))
    return TagRow(first.image, tags, first.line, first.split, not tags and (first.negative or again.negative))


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """Non-empty rows with their line numbers; cells are stripped."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as `CSV UTF-8`.") from error
    header = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    delimiter = "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((line, stripped))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line} is not CSV ({error}). Repair the quotes of that line.") from error
    return rows


def _columns(path: Path, line: int, header: Sequence[str], *, separator: str, nothing: tuple[str, ...]) -> _Columns:
    lower = [cell.casefold() for cell in header]
    image = next((lower.index(name) for name in _IMAGE_COLUMNS if name in lower), None)
    if image is None:
        found = "names an image" if Path(header[0]).suffix.casefold() in IMAGE_SUFFIXES else "is no header"
        raise DataError(
            f"{path}, line {line} {found}: {header[0]!r}. Put a header such as `image,tags` above the rows; "
            f"the image column is called {', '.join(_IMAGE_COLUMNS[:3])} or {_IMAGE_COLUMNS[3]}."
        )
    split = lower.index("split") if "split" in lower else None
    others = [index for index in range(len(header)) if index not in (image, split) and header[index]]
    tags = next((index for index in others if lower[index] in _TAG_COLUMNS), None)
    if tags is not None and len(others) > 1:
        extra = next(header[index] for index in others if index != tags)
        raise DataError(
            f"{path}, line {line} has both a column {header[tags]!r} and a column {extra!r}. Keep the image, the tags "
            "and `split`; a table with one column per class has no column of tags."
        )
    if not others:
        raise DataError(f"{path}, line {line} has no column of tags. Add `tags`, or one column per class.")
    one_hot = () if tags is not None else tuple((index, header[index]) for index in others)
    if len({name for _, name in one_hot}) != len(one_hot):
        raise DataError(f"{path}, line {line} names a column twice. Give each class one column.")
    return _Columns(image, split, tags, one_hot, len(header), separator, nothing)


def _row(path: Path, line: int, cells: Sequence[str], columns: _Columns) -> TagRow:
    if any(cells[columns.count :]):
        raise DataError(
            f"{path}, line {line} has {len(cells)} cells, but its header has {columns.count}. "
            'Quote a list of tags ("cat;dog") and separate the tags with semicolons.'
        )
    filled = [*cells, *[""] * (columns.count - len(cells))]
    if not filled[columns.image]:
        raise DataError(f"{path}, line {line} names no image. Fill its image column or remove the line.")
    if columns.tags is not None:
        found = [name.strip() for name in filled[columns.tags].split(columns.separator) if name.strip()]
    else:
        found = [name for index, name in columns.one_hot if _is_set(path, line, name, filled[index])]
    tags = tuple(dict.fromkeys(tag for tag in found if tag not in columns.nothing))
    comma = next((tag for tag in tags if "," in tag), None)
    if comma:
        raise TagError(
            f"{path}, line {line}: the tag {comma!r} holds a comma. Separate tags with semicolons, or set "
            "data.options.separator (--separator) to ','."
        )
    split = None if columns.split is None else _split(path, line, filled[columns.split])
    negative = not tags and bool(found or columns.one_hot)
    return TagRow(filled[columns.image], tags, line, split, negative)


def _is_set(path: Path, line: int, name: str, cell: str) -> bool:
    if cell.casefold() in _TRUE:
        return True
    if cell.casefold() in _FALSE:
        return False
    raise TagError(f"{path}, line {line}: expected 0 or 1 in column {name!r}, but got {cell!r}. Repair the cell.")


def _split(path: Path, line: int, cell: str) -> str:
    if cell.casefold() not in SPLITS:
        raise DataError(f"{path}, line {line}: expected split train, val or test, but got {cell!r}. Repair the cell.")
    return SPLITS[cell.casefold()]


def composed(names: Iterable[str]) -> tuple[str, ...]:
    """Names in Unicode's composed form, without spaces around them: two files may spell one name in two forms."""
    return tuple(unicodedata.normalize("NFC", name).strip() for name in names)


def by_composed_name(ids: Iterable[str]) -> dict[str, str]:
    """Ids of images, as the disk has them, by their composed form.

    Raises:
        DataError: if two are one name in two forms.
    """
    found: dict[str, str] = {}
    for image_id in ids:
        (name,) = composed([image_id])
        if name in found:
            raise DataError(
                f"The images {found[name]!a} and {image_id!a} have one name in two forms. Rename one of them."
            )
        found[name] = image_id
    return found


def look(name: str) -> str:
    """What people see of a name: case, width and kind of its letters and spaces put aside."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("\u200b", "").split())


def _check_names(path: Path, names: Sequence[tuple[str, int]]) -> None:
    """Refuse tags that look alike, such as those that differ in case: they would silently become two classes."""
    for (one, one_line), (other, other_line) in pairwise(sorted(names, key=lambda item: look(item[0]))):
        if look(one) == look(other):
            raise TagError(
                f"{path} spells one tag in two ways, {one!r} (line {one_line}) and {other!r} (line {other_line}). "
                "Choose one spelling."
            )
