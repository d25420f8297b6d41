"""LabelMe: a JSON file beside each photo, whose shapes are masks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dhr_lightning.artifacts.files import read_json, write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import Format, Mask, MaskSet, Sizes, painted, parts_of, png_pixels, png_text, value_of

VERSION = "5.5.0"  # of LabelMe, the first with `shape_type: mask` and these keys is 5.2


def write(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `ID.json` beside a copy of each known photo: one shape for each class, with the pixels of its box."""
    for image_id in masks.masks:
        mask = masks.read(image_id)
        shapes: list[dict[str, Any]] = []
        for name, pixels in parts_of(mask, masks.classes):
            rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
            top, bottom, left, right = (int(one) for one in (rows[0], rows[-1], columns[0], columns[-1]))
            box = pixels[top : bottom + 1, left : right + 1]
            shapes.append(
                {
                    "label": name,
                    "points": [[left, top], [right, bottom]],  # both inside
                    "group_id": None,
                    "description": "",
                    "shape_type": "mask",
                    "flags": {},
                    "mask": png_text(box),
                }
            )
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(masks.file_name(image_id)).name,
            "imageData": None,
            "imageHeight": mask.shape[0],
            "imageWidth": mask.shape[1],
        }
        path = folder / f"{image_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(content, ensure_ascii=False).encode())
    copied = masks.copy_images(folder)
    return [] if copied else ["photos are not known here: put them beside the JSON files"]


def read(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of a folder of LabelMe files: masks, and polygons, rectangles and circles that a person drew.

    Where shapes overlap, the later one counts. Outlines are filled as LabelMe does, by Pillow, with their border.

    Raises:
        MaskError: if a label is no class, or a shape covers no area (a line, a point).
    """
    for path in sorted(source.rglob("*.json")):
        content = read_json(path)
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        parts = []
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"{path}, shape {number}"
            parts.append((value_of(shape["label"], classes, where=where), _pixels(shape, size, where=where)))
        yield path.relative_to(source).with_suffix("").as_posix(), painted(size, parts)


def _pixels(shape: Mapping[str, Any], size: tuple[int, int], *, where: str) -> npt.NDArray[np.bool_]:
    """Pixels `(H, W)` of a shape."""
    corners = [(float(x), float(y)) for x, y in shape["points"]]
    if shape["shape_type"] == "mask":
        pixels = np.zeros(size, bool)
        box = png_pixels(shape["mask"])
        left, top = (int(one) for one in corners[0])
        pixels[top : top + box.shape[0], left : left + box.shape[1]] = box
        return pixels
    if shape["shape_type"] not in _OUTLINES:
        raise MaskError(f"{where} is a {shape['shape_type']}, which covers no area. Draw it as a polygon or a mask.")
    expected = 3 if shape["shape_type"] == "polygon" else 2
    if len(corners) < expected:
        raise MaskError(f"{where} is a {shape['shape_type']} of {len(corners)} points; expected {expected}. Delete it.")
    canvas = Image.new("1", (size[1], size[0]))
    _OUTLINES[shape["shape_type"]](ImageDraw.Draw(canvas), corners)
    return np.array(canvas)


def _circle(draw: ImageDraw.ImageDraw, corners: Sequence[tuple[float, float]]) -> None:
    """The first point is the centre, the second lies on the circle."""
    (x, y), on_it = corners[:2]
    radius = float(np.hypot(x - on_it[0], y - on_it[1]))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)


def _rectangle(draw: ImageDraw.ImageDraw, corners: Sequence[tuple[float, float]]) -> None:
    """Two opposite corners, in any order."""
    (x, y), (other_x, other_y) = corners[:2]
    draw.rectangle((min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)), fill=1, outline=1)


_OUTLINES: dict[str, Callable[[ImageDraw.ImageDraw, list[tuple[float, float]]], None]] = {
    "polygon": lambda draw, corners: draw.polygon(corners, fill=1, outline=1),
    "rectangle": _rectangle,
    "circle": _circle,
}
FORMAT = Format("labelme", "LabelMe JSON with masks (lossless), from version 5.2 on", write, read)
