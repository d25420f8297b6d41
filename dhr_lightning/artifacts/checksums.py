"""Checksums of the files of an artifact, kept beside them."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.files import write_bytes

_BLOCK = 1 << 20  # bytes read at once


def checksum(path: Path) -> str:
    """CRC-32 of the bytes of a file, as eight hexadecimal digits: it finds accidents, not forgery."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def write_checksums(folder: Path, sums: Mapping[str, str]) -> None:
    """Keep the checksum of every image id in `checksums.txt`."""
    text = "".join(f"{value} {image_id}\n" for image_id, value in sums.items())
    write_bytes(folder / layout.CHECKSUMS, text.encode(), durable=True)


def read_checksums(folder: Path) -> dict[str, str]:
    """Checksums by image id; empty for artifacts that have none, such as those of earlier versions."""
    path = folder / layout.CHECKSUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {image_id: value for value, _, image_id in (line.partition(" ") for line in lines)}
