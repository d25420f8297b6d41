"""MS COCO 2014 as a segmentation benchmark: instances of 80 classes painted over background."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import IGNORE_INDEX, ClassSet
from dhr_lightning.data.datasets.labels import COCO_CLASSES, COCO_IDS
from dhr_lightning.data.datasets.prepared import Source, keeps_table, prepare_split
from dhr_lightning.data.preparation.prepared_test import prepare_test
from dhr_lightning.data.preparation.regions import region_mask
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.progress import log

CROWD = ("ignore", "class")
_FOLDERS = {"train": "train2014", "val": "val2014"}
_TEST = "test2014"
_VALUES = {category: value for value, category in enumerate(COCO_IDS, start=1)}


def prepare_coco(root: Path, classes: ClassSet, options: Mapping[str, Any]) -> None:
    """Write tags and masks from `annotations/instances_{train,val}2014.json`; photos in `test2014` are the test split.

    Args:
        root: folder that holds `train2014`, `val2014` and `annotations`.
        classes: class list.
        options: `crowd`: `ignore` (default) leaves crowd regions out of training and scores, `class` counts them.

    Raises:
        ConfigError: if an option is unknown.
        DataError: if an annotation file is not COCO's, or none of its images is there.
    """
    crowd = options.get("crowd", "ignore")
    if set(options) - {"crowd"} or crowd not in CROWD:
        raise ConfigError(f"Expected data.options of coco to be crowd: {' or '.join(CROWD)}, but got {dict(options)}.")
    for split, folder in _FOLDERS.items():
        path = root / "annotations" / f"instances_{folder}.json"
        if keeps_table(root, split, source=path):
            continue
        log.info("coco/%s: reading %s (%.0f MB)", split, path, path.stat().st_size / 1e6)
        sources = instance_sources(root, folder, path, crowd=crowd)
        settings = {"crowd": crowd, "overlap": "small on top"}
        prepare_split(root, split, sources, classes, tag_source=path.name, settings=settings)
    prepare_test(root, _TEST, classes)


def instance_sources(root: Path, folder: str, path: Path, *, crowd: str) -> list[Source]:
    """Images of an instance file that are on disk, in the order of their ids.

    An image's tags are the classes of all its annotations, crowds included: a crowd of people is people.

    Args:
        root: folder of the dataset.
        folder: images below the root.
        path: JSON file.
        crowd: `ignore` or `class`, see `paint`.

    Raises:
        DataError: if the file is not COCO's instance file, or none of its images is in the folder.
    """
    content = _read(path)
    by_image = _by_image(content, path)
    images = {image["id"]: image for image in content["images"]}
    there = {file.name for file in (root / folder).iterdir()}
    changed = path.stat().st_mtime
    sources = []
    for image_id in sorted(images):
        image, annotations = images[image_id], by_image[image_id]
        if image["file_name"] in there:
            tags = tuple(sorted({_VALUES[annotation["category_id"]] for annotation in annotations}))
            size = (int(image["height"]), int(image["width"]))
            truth = partial(paint, annotations, size=size, crowd=crowd, where=str(path))
            name = image["file_name"]
            sources.append(Source(Path(name).stem, f"{folder}/{name}", truth, tags, changed))
    if not sources:
        raise DataError(f"None of the {len(images)} images of {path} is in {root / folder}. Unpack the photos there.")
    return sources


def _by_image(content: Mapping[str, Any], path: Path) -> Mapping[int, list[dict[str, Any]]]:
    by_image = defaultdict[int, list[dict[str, Any]]](list)
    for index, image in enumerate(content["images"]):
        _require(image, ("id", "file_name", "height", "width"), f"images[{index}] in {path}")
    for index, annotation in enumerate(content["annotations"]):
        _require(annotation, ("id", "image_id", "category_id", "segmentation"), f"annotations[{index}] in {path}")
        if annotation["category_id"] not in _VALUES:
            raise DataError(
                f"Annotation {annotation['id']} in {path} has category_id {annotation['category_id']}, which COCO does "
                "not have (ids 1-90 with ten holes). Put the official file in its place."
            )
        by_image[annotation["image_id"]].append(annotation)
    strange = sorted(set(by_image) - {image["id"] for image in content["images"]})
    if strange:
        raise DataError(f"{path} annotates {len(strange)} images that it does not list, first id {strange[0]}.")
    return by_image


def _require(entry: object, names: Sequence[str], where: str) -> None:
    missing = [name for name in names if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}. Unpack the official archive again.")


def paint(
    annotations: Sequence[Mapping[str, Any]], *, size: tuple[int, int], crowd: str, where: str
) -> npt.NDArray[np.uint8]:
    """Class values `(H, W)` of an image from its instances.

    Crowd regions lie at the bottom, then instances from the largest to the smallest by their number of pixels, so a
    small object stays visible on a large one; of equals the later id is on top.

    Args:
        annotations: `id`, `category_id`, `iscrowd` and `segmentation` of each instance.
        size: height and width, pixels.
        crowd: `ignore` paints crowd regions with 255, `class` with their class.
        where: file, for errors.

    Raises:
        DataError: if a region cannot be drawn.
    """
    height, width = size
    layers = []
    for annotation in annotations:
        name = f"annotation {annotation['id']} in {where}"
        region = region_mask(annotation["segmentation"], height=height, width=width, where=name)
        is_crowd = bool(annotation.get("iscrowd", 0))
        value = IGNORE_INDEX if is_crowd and crowd == "ignore" else _VALUES[annotation["category_id"]]
        layers.append((not is_crowd, -int(region.sum()), annotation["id"], value, region))
    mask = np.zeros((height, width), np.uint8)
    for *_, value, region in sorted(layers, key=lambda layer: layer[:3]):
        mask[region] = value
    return mask


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Unpack the official archive again.") from error
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= set(content):
        raise DataError(f"{path} lacks images, annotations or categories. Put COCO's instance file in its place.")
    listed = {category["id"]: category["name"] for category in content["categories"]}
    expected = dict(zip(COCO_IDS, COCO_CLASSES[1:], strict=True))
    if listed != expected:
        wrong = sorted(set(listed.items()) ^ set(expected.items()))[0]
        raise DataError(
            f"{path} numbers its categories unlike COCO, first {wrong}. Put the official file in its place."
        )
    return content
