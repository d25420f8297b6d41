"""Where an artifact lies: `<root>/<dataset>/<kind>/<split>/<image id><extension>`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dhr_lightning.errors import ArtifactError

MANIFEST = "manifest.json"
PARTIAL = ".partial.json"
IDS = "ids.txt"
LOCK = ".lock"
ROUNDS = "dhr_mask"
EXTENSIONS = {
    "cam": ".npz",
    "base_mask": ".png",
    "uss": ".npy",
    "wss_mask": ".png",
    "mars_mask": ".png",
    "prediction": ".png",
    "prediction_base": ".png",
}
_ROUND = re.compile(rf"{ROUNDS}/round_(\d{{2,}})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def round_kind(number: int) -> str:
    """Name the masks of one refresh: 3 -> `dhr_mask/round_03`.

    Raises:
        ValueError: if `number` is negative.
    """
    if number < 0:
        raise ValueError(f"Expected a round >= 0, but got {number}.")
    return f"{ROUNDS}/round_{number:02d}"


def round_number(kind: str) -> int | None:
    """Inverse of `round_kind`; None for every other kind or spelling."""
    match = _ROUND.fullmatch(kind)
    number = int(match[1]) if match else None
    return number if number is not None and round_kind(number) == kind else None


def is_kind(kind: str) -> bool:
    """Whether `kind` is a known artifact kind."""
    return kind in EXTENSIONS or round_number(kind) is not None


def extension(kind: str) -> str:
    """File extension of a kind, with its dot.

    Raises:
        ValueError: for an unknown kind.
    """
    if not is_kind(kind):
        raise ValueError(f"Expected a kind of {', '.join(EXTENSIONS)} or {ROUNDS}/round_KK, but got {kind!r}.")
    return EXTENSIONS.get(kind, ".png")


def check_name(name: str, what: str) -> str:
    """Return `name` if it is one plain folder name.

    Raises:
        ArtifactError: if it is empty, hidden, or holds anything but letters, digits, `_`, `-` and `.`.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"The {what} {name!r} cannot name a folder. Use letters, digits, `_`, `-` and `.` only.")
    return name


def check_id(image_id: str) -> str:
    """Return `image_id` if it names exactly one file below the artifact's folder; sub-folders are allowed.

    Raises:
        ArtifactError: for an absolute id, `..`, a hidden or empty part, a backslash or an invisible character.
    """
    parts = image_id.split("/")
    safe = image_id.isprintable() and "\\" not in image_id and not PurePosixPath(image_id).is_absolute()
    if not safe or any(not part or part.startswith(".") or part != part.strip() for part in parts):
        raise ArtifactError(
            f"The image id {image_id!r} cannot name a file: an id is relative and has no empty part, no part that "
            "starts with `.`, no backslash and no space or invisible character at an end. Rename the image or repair "
            "the row that names it."
        )
    return image_id


def item_path(folder: Path, kind: str, image_id: str) -> Path:
    """Path of the file of one image; the file need not exist.

    Raises:
        ArtifactError: for an unsafe id, or when a link leads out of `folder`.
        ValueError: for an unknown kind.
    """
    path = folder / f"{check_id(image_id)}{extension(kind)}"
    if "/" in image_id and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{path.parent} leads out of {folder} through a link. Remove the link.")
    return path


def has_content(path: Path) -> bool:
    """Whether `path` is a file with at least one byte; a power cut may leave an empty file under a final name."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder`; links to folders are not followed."""
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)
