"""Regions of COCO-style annotations (polygons and run lengths) as masks of pixels, drawn by pycocotools."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from dhr_lightning.errors import DataError

_FAR = 1e6  # pixels; pycocotools lists every point of an outline, so a stray number would take all memory


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

    Source: the mask format of the COCO API (Lin et al. 2014, arXiv:1405.0312).
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, where)
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]  # shorter ones mean boxes to pycocotools
        if not polygons:
            return np.zeros((height, width), np.bool_)
        return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))), np.bool_)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise DataError(f"Region of {where} is neither polygons nor run lengths. Restore the official file.")
    size = segmentation.get("size", [height, width])
    try:
        if size != [height, width]:
            raise ValueError("another size")
        return _decode(segmentation["counts"], height, width)
    except ValueError as error:
        raise DataError(
            f"Run lengths of {where} do not cover a region of {size}, or its image is {height}x{width} "
            f"(rows x columns): {error}. Restore the official file."
        ) from error


def _decode(counts: Any, height: int, width: int) -> npt.NDArray[np.bool_]:  # noqa: ANN401
    """Mask of run lengths; raises `ValueError` unless they cover every pixel once."""
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError("wrong number of pixels")
        return np.asarray(
            coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)), bool
        )
    mask = coco.decode({"size": [height, width], "counts": str(counts)})
    # pycocotools refuses run lengths that go on after the last pixel, but fills up those that end before it.
    if coco.encode(mask)["counts"].decode() != counts:
        raise ValueError("wrong number of pixels")
    return np.asarray(mask, np.bool_)


def _check_polygons(polygons: list[Any], where: str) -> None:
    """Raise `DataError` unless every polygon is a list of pairs of numbers."""
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(one, int | float) and abs(one) < _FAR for one in polygon)
        if not numbers or len(polygon) % 2:
            raise DataError(f"Polygon of {where} is not a list of x, y pairs in pixels. Restore the official file.")
