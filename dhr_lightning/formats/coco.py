"""COCO: one JSON file with run lengths, which hold every pixel."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhr_lightning.artifacts.files import read_json, write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import IGNORE, Format, Mask, MaskSet, Sizes, id_of, painted, parts_of, value_of

FILE = "annotations.json"


def write(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `annotations.json`, one annotation for each class of an image, and `images/` of the known photos."""
    from pycocotools import mask as runs

    names = [*masks.classes.tag_names, IGNORE]
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in enumerate(masks.masks, start=1):
        mask = masks.read(image_id)
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": number, "file_name": masks.file_name(image_id), **size})
        for name, pixels in parts_of(mask, masks.classes):
            code = runs.encode(np.asfortranarray(pixels))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[name],
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
                    "area": int(runs.area(code)),
                    "bbox": [float(one) for one in runs.toBbox(code)],
                    "iscrowd": 0,
                }
            )
    used = {one["category_id"] for one in annotations}
    categories = [
        {"id": number, "name": name, "supercategory": ""}
        for name, number in numbers.items()
        if name != IGNORE or number in used
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_bytes(folder / FILE, json.dumps(content, ensure_ascii=False).encode())
    masks.copy_images(folder / "images")
    return []


def read(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of a COCO file, whose annotations may be run lengths of either form or polygons.

    Raises:
        MaskError: if a category is no class.
    """
    from pycocotools import mask as runs

    path = source / FILE if source.is_dir() else source
    content = read_json(path)
    missing = next((key for key in ("images", "annotations", "categories") if key not in content), None)
    if missing:
        raise MaskError(f"{path} has no {missing!r}, so it is no COCO file of annotations.")
    names = {one["id"]: one["name"] for one in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in content["annotations"]:
        by_image.setdefault(one["image_id"], []).append(one)
    for image in content["images"]:
        size = (int(image["height"]), int(image["width"]))
        parts = []
        for one in by_image.get(image["id"], ()):
            code, where = one["segmentation"], f"{path}, annotation {one.get('id')}"
            if isinstance(code, list):
                code = runs.merge(runs.frPyObjects(code, *size))
            elif isinstance(code["counts"], list):
                code = runs.frPyObjects(code, *size)
            parts.append((value_of(names[one["category_id"]], classes, where=where), runs.decode(code) == 1))
        yield id_of(image["file_name"]), painted(size, parts)


FORMAT = Format("coco", "COCO JSON with run lengths (lossless); trainers, CVAT, Label Studio", write, read)
