"""Masks with all that a format may lose: parts, holes, single pixels, odd names, ignored pixels, full classes."""

from pathlib import Path

import numpy as np
from PIL import Image

from dhr_lightning.artifacts.files import write_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.formats.base import MaskSet

CLASSES = ClassSet(("background", "cat", "traffic light", "Tür, größer", "犬"))
SIZE = (37, 53)  # rows and columns, neither a multiple of 8


def draw() -> dict[str, np.ndarray]:
    """Masks by id; one lies in a folder of its own, one is empty, one is full."""
    generator = np.random.default_rng(0)
    holes = np.zeros(SIZE, np.uint8)
    holes[5:30, 5:40] = 1
    holes[10:20, 10:25] = 0
    holes[12:16, 13:20] = 2  # an island in the hole
    holes[0, 0] = holes[-1, -1] = 3  # parts of one pixel in the corners
    noise = generator.integers(0, CLASSES.num_classes, SIZE, dtype=np.uint8)
    ignored = holes.copy()
    ignored[:, 45:48] = CLASSES.ignore_index
    stripes = np.zeros(SIZE, np.uint8)
    stripes[::2] = 4
    return {
        "holes": holes,
        "noise": noise,
        "deep/er/ignored": ignored,
        "stripes": stripes,
        "empty": np.zeros(SIZE, np.uint8),
        "full": np.full(SIZE, 2, np.uint8),
    }


def mask_set(folder: Path, *, without: tuple[str, ...] = (), photos: bool = True) -> MaskSet:
    """The masks as files, with photos."""
    masks, images = {}, {}
    for image_id, mask in draw().items():
        if image_id in without:
            continue
        masks[image_id] = folder / "masks" / f"{image_id}.png"
        images[image_id] = folder / "photos" / f"{image_id}.jpg"
        for path in (masks[image_id], images[image_id]):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(masks[image_id], mask, CLASSES.palette)
        Image.new("RGB", SIZE[::-1], (90, 120, 150)).save(images[image_id])
    return MaskSet(masks, images if photos else {}, CLASSES)
