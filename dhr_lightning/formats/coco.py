"""COCO: one JSON file with run lengths, which hold every pixel, or with polygons, which have no holes."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import read_json, write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import IGNORE, Format, Mask, MaskSet, Sizes, id_of, painted, parts_of, value_of
from dhr_lightning.formats.polygons import corner_outlines

FILE = "annotations.json"


def write(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `annotations.json`, one annotation for each class of an image, and `images/` of the known photos."""
    _write(masks, folder, _run_lengths)
    return []


def write_polygons(masks: MaskSet, folder: Path) -> Sequence[str]:
    """The same with polygons along the corners of the pixels, for tools that read nothing else.

    Returns:
        how many holes are filled.

    Raises:
        DependencyError: if OpenCV, which finds contours, is not installed.
    """
    holes = 0

    def polygons(pixels: npt.NDArray[np.bool_]) -> list[list[float]]:
        nonlocal holes
        contours, inner = corner_outlines(pixels)
        holes += inner
        return [[float(one) for one in contour.ravel()] for contour in contours]

    _write(masks, folder, polygons)
    return [f"polygons have no holes: {holes} are filled (coco loses none)"]


def _run_lengths(pixels: npt.NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as runs

    code = runs.encode(np.asfortranarray(pixels))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def _write(masks: MaskSet, folder: Path, code: Callable[[npt.NDArray[np.bool_]], Any]) -> None:
    names = [*masks.classes.tag_names, IGNORE]
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image_id in enumerate(masks.masks, start=1):
        mask = masks.read(image_id)
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": number, "file_name": masks.file_name(image_id), **size})
        for name, pixels in parts_of(mask, masks.classes):
            place = {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[name]}
            annotations.append({**place, "segmentation": code(pixels), **_extent(pixels), "iscrowd": 0})
    used = {one["category_id"] for one in annotations}
    categories = [
        {"id": number, "name": name, "supercategory": ""}
        for name, number in numbers.items()
        if name != IGNORE or number in used
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_bytes(folder / FILE, json.dumps(content, ensure_ascii=False).encode())
    masks.copy_images(folder / "images")


def _extent(pixels: npt.NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {"area": int(pixels.sum()), "bbox": [float(one) for one in box]}


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
POLYGONS = Format("coco-polygons", "COCO JSON with polygons (no holes; says how many)", write_polygons, read)
