"""Tables that annotation tools export, turned into the plain form `image,tags`."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from dhr_lightning.errors import DataError

Lines = list[tuple[int, list[str]]]
_LABEL_STUDIO = ("annotation_id", "image", "choice")  # columns of its CSV of image classification
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # it puts a random part before the names of uploaded files
log = logging.getLogger("dhr_lightning")


def plain_lines(path: Path, lines: Lines, *, separator: str) -> Lines:
    """Lines of a table, those of a known export as `image,tags`; others as they are.

    Args:
        path: the table.
        lines: line number and cells, the header first.
        separator: put between the tags of an image.

    Raises:
        DataError: if a cell of an export cannot be read.
    """
    header = [cell.casefold() for cell in lines[0][1]]
    if not all(name in header for name in _LABEL_STUDIO):
        return lines
    log.info("%s: an export of Label Studio, of which the columns image and choice are read", path)
    image, choice = header.index("image"), header.index("choice")
    found: Lines = [(lines[0][0], ["image", "tags"])]
    for line, cells in lines[1:]:
        filled = [*cells, *[""] * (len(header) - len(cells))]
        name = _UPLOAD.sub("", filled[image].replace("\\", "/").rpartition("/")[2])
        found.append((line, [name, separator.join(_choices(path, line, filled[choice], separator))]))
    return found


def _choices(path: Path, line: int, cell: str, separator: str) -> Sequence[str]:
    """Choices of a cell: one name, or JSON where there are several."""
    try:
        value = json.loads(cell) if cell.startswith(("{", "[")) else [cell]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {line}: {cell!r} is no JSON ({error}). Export the table again.") from error
    names = value.get("choices") if isinstance(value, dict) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}, line {line}: expected choices in {cell!r}. Export the project as CSV of choices.")
    if any(separator in name for name in names):
        raise DataError(
            f"{path}, line {line}: a choice of {cell!r} holds {separator!r}, which separates tags. Name another "
            "--separator (data.options.separator)."
        )
    return names
