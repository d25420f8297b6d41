"""Where an artifact lies: `<root>/<dataset>/<address>/<split>/<image id><extension>`."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.errors import ArtifactError
from dhr_lightning.shards import Shard

MANIFEST = "manifest.json"
PARTIAL = ".partial.json"
IDS = "ids.txt"
CHECKSUMS = "checksums.txt"
LOCK = ".lock"


def shard_lock(folder: Path, shard: Shard) -> Path:
    """Lock file of a job that writes its share of an artifact."""
    return folder / f"{LOCK}-{shard.number}-{shard.count}"


def shards_begun(folder: Path) -> list[Shard]:
    """Jobs that have begun to write their share."""
    places = (path.name.removeprefix(f"{LOCK}-").split("-") for path in sorted(folder.glob(f"{LOCK}-*-*")))
    return [Shard(int(number), int(count)) for number, count in places]


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


def item_path(folder: Path, address: str, image_id: str) -> Path:
    """Path of the file of one image; the file need not exist.

    Raises:
        ArtifactError: for an unsafe id, or when a link leads out of `folder`.
        ValueError: for an address of an unknown kind.
    """
    path = folder / f"{check_id(image_id)}{kind_of(address).codec.extension}"
    if "/" in image_id and not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{path.parent} leads out of {folder} through a link. Remove the link.")
    return path


def has_content(path: Path) -> bool:
    """Whether `path` is a file with at least one byte; a power cut may leave an empty file under a final name."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def names_below(folder: Path | str, prefix: str = "") -> set[str]:
    """Names of all files below a folder, relative to it; links to folders are not followed.

    Args:
        folder: where to look; only folders are read and no file is asked for its state, which takes long for 10^6.
        prefix: put before each name.
    """
    names = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                names |= names_below(entry.path, f"{prefix}{entry.name}/")
            else:
                names.add(prefix + entry.name)
    return names


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder`; links to folders are not followed."""
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)
