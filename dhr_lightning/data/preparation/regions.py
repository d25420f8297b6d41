"""Regions of COCO-style annotations (polygons and run lengths) as masks of pixels, without pycocotools."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.errors import DataError

_FINER = 5  # polygons are drawn on a grid this many times finer, and pixels are sampled from it


def region_mask(segmentation: Any, *, height: int, width: int, where: str) -> npt.NDArray[np.bool_]:  # noqa: ANN401
    """Pixels of one annotation.

    Args:
        segmentation: the JSON value: a list of polygons `[x0, y0, x1, y1, ...]`, or run lengths
            `{"size": [H, W], "counts": list or string}`.
        height: rows of the image, pixels.
        width: columns of the image, pixels.
        where: file and annotation, for errors.

    Returns:
        `(H, W)` bool. Polygons are united; one with fewer than three corners covers nothing.

    Raises:
        DataError: if the value is neither, or its run lengths do not fit the image.

    Source: the mask format of the COCO API (Lin et al. 2014, arXiv:1405.0312); pixel for pixel what pycocotools gives.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), np.bool_)
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise DataError(f"Polygon of {where} is not a list of x, y pairs. Restore the official file.")
            if len(polygon) >= 6:
                mask |= fill_polygon(polygon, height=height, width=width)
        return mask
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise DataError(f"Region of {where} is neither polygons nor run lengths. Restore the official file.")
    counts = segmentation["counts"]
    runs = np.asarray(counts, np.int64) if isinstance(counts, list) else _decode_counts(str(counts))
    size = list(segmentation.get("size", (height, width)))
    if size != [height, width] or (runs < 0).any() or runs.sum() != height * width:
        raise DataError(
            f"Run lengths of {where} cover {int(runs.sum())} pixels of a {size} region, but its image is "
            f"{height}x{width} (rows x columns). Restore the official file."
        )
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    return np.asarray(mask.T)


def fill_polygon(polygon: Sequence[float], *, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Pixels inside a polygon `[x0, y0, x1, y1, ...]`, in pixels from the top left corner: `(H, W)` bool.

    A column changes between outside and inside where the outline crosses its middle on a five times finer grid.
    """
    corners = np.trunc(_FINER * np.asarray(polygon, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)
    x, y = _outline(corners)
    crossing = x[1:] != x[:-1]
    column = np.minimum(x[1:], x[:-1])[crossing]
    row = np.minimum(y[1:], y[:-1])[crossing]
    kept = (column % _FINER == _FINER // 2) & (column >= 0) & (column < _FINER * width)
    column = column[kept] // _FINER
    row = np.ceil(np.clip((row[kept] + 0.5) / _FINER - 0.5, 0, height)).astype(np.int64)
    mask = np.zeros((width, height), np.bool_)
    if len(column):
        first, last = int(column.min()), int(column.max())
        marks = np.bincount((column - first) * height + row, minlength=(last - first + 1) * height)
        inside = np.cumsum(marks[: (last - first + 1) * height]) % 2 == 1
        mask[first : last + 1] = inside.reshape(-1, height)
    return np.asarray(mask.T)


def _outline(corners: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Grid points along a closed polygon `(P, 2)`, edge after edge: one point per step of the longer axis."""
    start, end = corners, np.roll(corners, -1, axis=0)
    span = np.abs(end - start)
    proper = span.max(axis=1) > 0
    start, end, span = start[proper], end[proper], span[proper]
    steep = span[:, 1] > span[:, 0]
    main = np.where(steep, 1, 0)
    rows = np.arange(len(start))
    swap = start[rows, main] > end[rows, main]
    low, high = np.where(swap[:, None], end, start), np.where(swap[:, None], start, end)
    length = span[rows, main]
    slope = (high - low)[rows, 1 - main] / np.maximum(length, 1)
    edge = np.repeat(rows, length + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    step = np.where(swap[edge], length[edge] - step, step)
    along = low[edge, main[edge]] + step
    across = np.trunc(low[edge, 1 - main[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(steep[edge], across, along), np.where(steep[edge], along, across)


def _decode_counts(text: str) -> npt.NDArray[np.int64]:
    """Run lengths of the compressed form: little-endian groups of five bits, the differences to the run before last."""
    codes = np.frombuffer(text.encode("ascii", errors="replace"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes[-1] & 32 or ((codes < 0) | (codes > 63)).any():
        return np.array([-1])
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    if place.max() > 55:
        return np.array([-1])
    values = np.add.reduceat((codes & 31) << place, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (place[ends] + 5), 0)  # the sign is the top bit of the group
    runs: npt.NDArray[np.int64] = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
