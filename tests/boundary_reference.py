"""A slow band along contours, and masks with contours."""

import numpy as np


def eroded_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """Each class of one mask `(H, W)` minus its erosion by a 3 x 3 square, `distance` times, nothing outside."""
    band = np.zeros(mask.shape, bool)
    for value in np.unique(mask):
        inside = mask == value
        kept = np.pad(inside, 1)
        for _ in range(distance):
            padded = np.pad(kept, 1)
            height, width = kept.shape
            squares = [padded[row : row + height, column : column + width] for row in range(3) for column in range(3)]
            kept = np.all(squares, axis=0)
        band |= inside & ~kept[1:-1, 1:-1]
    return band


def blocks(shape: tuple[int, int], cells: tuple[int, int], seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 4, cells)
    rows, columns = (np.arange(side) * count // side for side, count in zip(shape, cells, strict=True))
    return values[rows][:, columns]
