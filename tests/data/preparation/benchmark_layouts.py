"""Miniatures of the benchmarks in their official layouts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.data.datasets.labels import COCO_CLASSES, COCO_IDS, CONTEXT_CLASSES, CONTEXT_IDS

SIZE = (12, 10)  # width, height


def write_photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)


def write_grey(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def values_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon around pixels [left, right) x [top, bottom)."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Plain run lengths of a mask, as COCO writes crowds."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_coco(root: Path, annotations: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> None:
    """`annotations[folder][image id]`: what lies on each photo."""
    for folder, images in annotations.items():
        listed, objects = [], []
        for image_id, rows in images.items():
            name = f"COCO_{folder}_{image_id:012d}.jpg"
            write_photo(root / folder / name)
            listed.append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            objects += [{"id": len(objects) + n, "image_id": image_id, **row} for n, row in enumerate(rows, start=1)]
        categories = [{"id": i, "name": name} for i, name in zip(COCO_IDS, COCO_CLASSES[1:], strict=True)]
        path = root / "annotations" / f"instances_{folder}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": listed, "annotations": objects, "categories": categories}))


def write_context(root: Path, regions: Mapping[str, Mapping[str, Sequence[tuple[int, dict[str, Any]]]]]) -> None:
    """`regions[split][photo]`: category of the 459-class list and run lengths."""
    images, annotations = [], []
    for split, photos in regions.items():
        for name, rows in photos.items():
            write_photo(root / "JPEGImages" / f"{name}.jpg")
            number = int(name.replace("_", ""))
            width, height = SIZE
            images.append(
                {"image_id": number, "file_name": f"{name}.jpg", "phase": split, "width": width, "height": height}
            )
            annotations += [
                {"id": len(annotations) + n, "image_id": number, "category_id": category, "segmentation": region}
                for n, (category, region) in enumerate(rows)
            ]
    categories = [{"category_id": i, "name": name} for i, name in zip(CONTEXT_IDS, CONTEXT_CLASSES, strict=True)]
    content = {"images": images, "annos_segmentation": annotations, "categories": categories}
    (root / "trainval_merged.json").write_text(json.dumps(content))
