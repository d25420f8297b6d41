"""Contours of the pixels of a mask, for formats that hold polygons; OpenCV finds them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.errors import DependencyError

Contours = list[npt.NDArray[np.int64]]


def outlines(pixels: npt.NDArray[np.bool_]) -> tuple[Contours, int]:
    """Outer contours `(N, 2)` as x, y of pixels in a mask, and the number of holes.

    Raises:
        DependencyError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise DependencyError(
            "Polygons need OpenCV, which is not installed. Run `pip install 'dhr-lightning[polygons]'`, or export to "
            "yolo-sem or coco, which lose nothing."
        ) from error
    found: Any
    found, order = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [one[:, 0].astype(np.int64) for one, (*_, parent) in zip(found, order[0], strict=True) if parent < 0]
    return outer, len(found) - len(outer)


def corner_outlines(pixels: npt.NDArray[np.bool_]) -> tuple[Contours, int]:
    """Outer contours `(N, 2)` along the corners of the pixels, which enclose each part exactly; number of holes.

    Pixel (x, y) covers x to x + 1 and y to y + 1. Contours of the doubled mask run through halves of pixels, of which
    each belongs to the nearer corner.

    Raises:
        DependencyError: if OpenCV is not installed.
    """
    doubled = pixels.repeat(2, axis=0).repeat(2, axis=1)
    contours, holes = outlines(doubled)
    return [_without_straight((one + 1) // 2) for one in contours], holes


def _without_straight(corners: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Corners of a closed contour without repeated ones and those on a straight line."""
    kept: npt.NDArray[np.int64] = corners[(corners != np.roll(corners, 1, axis=0)).any(1)]
    before, after = kept - np.roll(kept, 1, axis=0), np.roll(kept, -1, axis=0) - kept
    turns: npt.NDArray[np.bool_] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return kept[turns]
