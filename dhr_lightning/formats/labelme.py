"""LabelMe: a JSON file beside each photo, whose shapes are masks."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    """Masks of a folder of LabelMe files; shapes that are no masks are refused.

    Raises:
        MaskError: if a label is no class, or a shape is drawn otherwise.
    """
    for path in sorted(source.rglob("*.json")):
        content = read_json(path)
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        parts = []
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"{path}, shape {number}"
            if shape["shape_type"] != "mask":
                raise MaskError(f"{where} is a {shape['shape_type']}; only masks are read. Convert it in LabelMe.")
            box = png_pixels(shape["mask"])
            left, top = (int(one) for one in shape["points"][0])
            pixels = np.zeros(size, bool)
            pixels[top : top + box.shape[0], left : left + box.shape[1]] = box
            parts.append((value_of(shape["label"], classes, where=where), pixels))
        yield path.relative_to(source).with_suffix("").as_posix(), painted(size, parts)


FORMAT = Format("labelme", "LabelMe JSON with masks (lossless), from version 5.2 on", write, read)
