"""Decode every file of a dataset once and note what can be wrong with it."""

import hashlib
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.files import open_image, read_image, read_truth
from dhr_lightning.data.image_headers import ImageHeader, read_header
from dhr_lightning.errors import DataError, MaskError
from dhr_lightning.progress import track

THUMBNAIL = 16
_ORIENTATION = 0x0112
_MAX_WORKERS = 8  # each holds one decoded photo
_UNREADABLE = (DataError, OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class MaskScan:
    """What a ground-truth mask holds.

    Args:
        path: the file.
        state: `ok`, `unreadable`, or `colours` for anything but 8-bit class values.
        error: why it cannot be used; empty if it can.
        mode: Pillow's name of its pixels, such as `P` or `RGB`; empty if unknown.
        size: `(width, height)` in pixels.
        pixels: number of pixels of each value.
    """

    path: Path
    state: Literal["ok", "unreadable", "colours"]
    error: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scan:
    """What the files of one record hold.

    Args:
        split: its split.
        record: the record.
        error: why the photo cannot be read; empty if it can.
        size: `(width, height)` of the upright photo in pixels, `(0, 0)` if unreadable.
        stored: the same before the turn that the EXIF tag asks for.
        orientation: EXIF orientation, 1 = upright.
        mode: Pillow's name of the stored pixels, such as `RGB` or `CMYK`.
        header: depth, pages and bands as stored; `None` if unreadable.
        fourth: what the channel beside the colours holds: `opaque`, `transparency`, `band`; empty without one.
        digest: of the file's bytes.
        thumbnail: `(16, 16)` uint8 grey, `None` if unreadable.
        mask: its ground truth, `None` without one.
    """

    split: str
    record: Record
    error: str = ""
    size: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    header: ImageHeader | None = None
    fourth: str = ""
    digest: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = None
    mask: MaskScan | None = None

    @property
    def readable(self) -> bool:
        """Whether the photo could be decoded."""
        return not self.error


def scan_records(records: Mapping[str, Sequence[Record]], *, workers: int | None = None) -> list[Scan]:
    """Decode all photos and masks, in threads (Pillow decodes outside the interpreter lock), and show the progress.

    Args:
        records: images by split.
        workers: number of threads, >= 1; default: one per usable core, at most 8.

    Returns:
        One scan per record, in the order of the records.

    Raises:
        ValueError: if `workers` is less than 1.
    """
    count = min(_usable_cores(), _MAX_WORKERS) if workers is None else workers
    if count < 1:
        raise ValueError(f"Expected `workers` >= 1, but got {workers}.")
    pairs = [(split, record) for split, rows in records.items() for record in rows]
    pool = ThreadPoolExecutor(count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photos are a finding of their own
            futures = [pool.submit(scan_record, split, record) for split, record in pairs]
            return list(track(_results(futures), "reading files", total=len(futures)))
    finally:
        pool.shutdown(cancel_futures=True)


def _results(futures: Sequence[Future[Scan]]) -> Iterator[Scan]:
    return (future.result() for future in futures)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_record(split: str, record: Record) -> Scan:
    """Decode the photo and the mask of one record. What cannot be decoded is noted, not raised."""
    scan = Scan(split, record, mask=scan_mask(record.gt_mask, record.gt_values) if record.gt_mask is not None else None)
    try:
        digest = hashlib.blake2b(record.image.read_bytes(), digest_size=16).hexdigest()
        with open_image(record.image) as header:
            orientation = int(header.getexif().get(_ORIENTATION, 1))
            scan = replace(scan, stored=header.size, orientation=orientation, mode=header.mode, digest=digest)
            scan = replace(scan, header=read_header(header, record.image))
            scan = replace(scan, fourth=fourth_channel(header, scan.header))
        image = read_image(record.image)
    except (*_UNREADABLE, *_BOMB) as error:
        return replace(scan, error=_reason(error))
    return replace(scan, size=image.size, thumbnail=make_thumbnail(image))


def fourth_channel(image: Image.Image, header: ImageHeader | None) -> str:
    """What the channel beside the colours holds, see `Scan.fourth`.

    Transparency hides or shows: most of its values are 0 or 255. A band such as near-infrared varies everywhere.
    """
    if header is not None and header.other_band:
        return "band"
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return ""
    counts = np.array(image.convert("RGBA").getchannel("A").histogram())
    if counts[255] == counts.sum():
        return "opaque"
    return "transparency" if counts[[0, 255]].sum() > counts.sum() / 2 else "band"


def scan_mask(path: Path, table: bytes | None = None) -> MaskScan:
    """Decode a mask and count its values. What cannot be decoded is noted, not raised.

    Args:
        path: the file.
        table: class value of each value of the file, see `Record.gt_values`.
    """
    try:
        with Image.open(path) as header:
            mode, size = header.mode, header.size
    except (*_UNREADABLE, *_BOMB) as error:
        return MaskScan(path, "unreadable", _reason(error))
    try:
        values = read_truth(path)
    except MaskError as error:
        state: Literal["unreadable", "colours"] = "unreadable" if isinstance(error.__cause__, Exception) else "colours"
        return MaskScan(path, state, _reason(error.__cause__ or error), mode, size)
    except (*_UNREADABLE, *_BOMB) as error:
        return MaskScan(path, "unreadable", _reason(error), mode, size)
    if table is not None:
        values = np.frombuffer(table, np.uint8)[values]
    counts = np.bincount(values.ravel(), minlength=256)
    pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return MaskScan(path, "ok", "", mode, (values.shape[1], values.shape[0]), pixels)


def make_thumbnail(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Shrink a photo to `(16, 16)` uint8 grey; copies of one photo at other sizes and qualities stay alike."""
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(small.convert("L"))


def _reason(error: BaseException) -> str:
    """The message without its own advice: a cause where there is one."""
    inner = error.__cause__ if isinstance(error, DataError) and error.__cause__ else error
    return f"{type(inner).__name__}: {inner}"
