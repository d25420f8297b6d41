"""Findings about images that occur twice: ids spelt differently, equal files, look-alikes across splits."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.layout import check_id
from dhr_lightning.data.catalog import SPLITS, Record
from dhr_lightning.errors import ArtifactError
from dhr_lightning.inspection.finding import Finding, finding
from dhr_lightning.inspection.scan import THUMBNAIL, Scan

# Copies at two thirds of the size and JPEG quality 40 reach 0.998 and a difference of 1.3 grey levels; different photos
# of VOC stay far below, and the drawn scenes of the built-in dataset reach 0.987.
LOOK_ALIKE_CORRELATION = 0.99
LOOK_ALIKE_DIFFERENCE = 16.0
HELD_OUT = tuple(split for split in SPLITS if split != "train")
_EXTENSION = re.compile(r"\.(jpe?g|png|bmp|webp|tiff?|gif)$")
_ROWS_AT_ONCE = 2048


def id_findings(records: Mapping[str, Sequence[Record]]) -> list[Finding]:
    """Ids that cannot name an artifact, lie in two splits, or differ only in spelling."""
    ids = {split: [record.id for record in rows] for split, rows in records.items()}
    everything = sorted({image_id for rows in ids.values() for image_id in rows})
    shared = sorted(set(ids.get("train", ())) & {one for split in HELD_OUT for one in ids.get(split, ())})
    bad = [reason for image_id in everything if (reason := _refusal(image_id))]
    groups = defaultdict(list)
    for image_id in everything:
        groups[plain_id(image_id)].append(image_id)
    alike = [" = ".join(repr(image_id) for image_id in group) for group in groups.values() if len(group) > 1]
    found = finding("problem", "bad-id", bad, "Ids that cannot name a file: {n}.", "Rename the images.")
    found += finding(
        "problem",
        "shared-id",
        shared,
        "Ids that are in train and in val or test, so that the score counts what was trained on: {n}.",
        "Remove them from one list.",
    )
    return found + finding(
        "warning",
        "similar-id",
        alike,
        "Groups of ids that differ only in case, extension, white space or accents (one image listed twice?): {n}.",
        "Keep one spelling; on a file system that ignores case, their artifacts would overwrite each other.",
    )


def plain_id(image_id: str) -> str:
    """An id without what people spell differently: case, image extension, white space, composed accents."""
    text = " ".join(unicodedata.normalize("NFKC", image_id).casefold().split())
    return _EXTENSION.sub("", text).strip()


def _refusal(image_id: str) -> str:
    try:
        check_id(image_id)
    except ArtifactError as error:
        return str(error)
    return ""


def duplicate_findings(scans: Sequence[Scan]) -> list[Finding]:
    """Files with the same bytes, and photos of train and val that look the same."""
    groups: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.readable and scan.record.image not in [other.record.image for other in groups[scan.digest]]:
            groups[scan.digest].append(scan)
    twice = [group for group in groups.values() if len(group) > 1]
    leaks = [_describe(group) for group in twice if len({s.split for s in group}) > 1]
    within = [_describe(group) for group in twice if len({s.split for s in group}) == 1]
    found = finding(
        "problem",
        "leaked-file",
        leaks,
        "Photos that are the same file in two splits, so that the score counts what was trained on: {n}.",
        "Remove them from one split.",
    )
    found += finding(
        "warning",
        "duplicate-file",
        within,
        "Photos that are listed more than once under different ids: {n}.",
        "Keep one of each; where their tags differ, decide which is right.",
    )
    return found + finding(
        "warning",
        "look-alike",
        _look_alikes(scans),
        "Photos of val or test that look like one of train, scaled or saved again: {n} (in brackets the correlation of "
        "small grey copies). Possibly a leak.",
        "Look at them; remove true copies from one split.",
    )


def _describe(group: Sequence[Scan]) -> str:
    differ = len({scan.record.tags for scan in group}) > 1
    return " = ".join(f"{scan.split}/{scan.record.id}" for scan in group) + (" (tags differ)" if differ else "")


def _look_alikes(scans: Sequence[Scan]) -> list[str]:
    train = [scan for scan in scans if scan.split == "train" and scan.readable]
    other = [scan for scan in scans if scan.split in HELD_OUT and scan.readable]
    items = []
    for a, b, correlation in look_alikes(_thumbnails(train), _thumbnails(other)):
        if train[a].digest != other[b].digest and train[a].record.id != other[b].record.id:
            items.append(f"train/{train[a].record.id} ~ {other[b].split}/{other[b].record.id} ({correlation:.3f})")
    return items


def _thumbnails(scans: Sequence[Scan]) -> npt.NDArray[np.float32]:
    rows = [scan.thumbnail.ravel() for scan in scans if scan.thumbnail is not None]
    return np.array(rows, np.float32).reshape(len(rows), THUMBNAIL**2)


def look_alikes(train: npt.NDArray[np.float32], val: npt.NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs of small grey pictures that agree in pattern and in brightness.

    Args:
        train: `(N, P)` grey values in [0, 255].
        val: `(M, P)` of the same.

    Returns:
        Row of `train`, row of `val`, correlation in [-1, 1]; a picture without any pattern has no look-alike.
    """
    pairs = []
    if not len(train) or not len(val):
        return []
    other = _standardize(val)
    for start in range(0, len(train), _ROWS_AT_ONCE):
        correlation = _standardize(train[start : start + _ROWS_AT_ONCE]) @ other.T  # (n, M)
        for a, b in np.argwhere(correlation >= LOOK_ALIKE_CORRELATION):
            if np.abs(train[start + a] - val[b]).mean() <= LOOK_ALIKE_DIFFERENCE:
                pairs.append((int(start + a), int(b), float(correlation[a, b])))
    return pairs


def _standardize(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    centred = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    # Below one grey level of contrast only noise is left, and noise may agree by chance.
    unit: npt.NDArray[np.float32] = np.where(length > rows.shape[1] ** 0.5, centred / np.maximum(length, 1e-6), 0)
    return unit
