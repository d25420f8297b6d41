"""Pascal Context: 59 classes on photos of PASCAL VOC 2010, the rest ignored."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.data.catalog import IGNORE_INDEX, TAGGED_SPLITS, ClassSet, refuse_options
from dhr_lightning.data.datasets.labels import CONTEXT_CLASSES, CONTEXT_IDS
from dhr_lightning.data.datasets.prepared import Source, keeps_table, prepare_split, remap
from dhr_lightning.data.files import read_truth
from dhr_lightning.data.preparation.official_masks import id_table
from dhr_lightning.data.preparation.regions import region_mask
from dhr_lightning.errors import DataError

ANNOTATIONS = "trainval_merged.json"
CONVERTED = "SegmentationClassContext"
_LISTS = "ImageSets/SegmentationContext"
_VALUES = {category: value for value, category in enumerate(CONTEXT_IDS)}


def prepare_context(root: Path, classes: ClassSet, options: Mapping[str, Any]) -> None:
    """Write tags and masks from `trainval_merged.json`, or from masks that mmsegmentation's converter made of it.

    Those masks hold 0 for background and 1-59 in the order of `CONTEXT_CLASSES`; both ways give the same files.

    Args:
        root: folder `VOCdevkit/VOC2010`.
        classes: class list.
        options: none.

    Raises:
        ConfigError: if there is any option.
        DataError: if the annotations are of another kind, or a photo is missing.
        MaskError: if a converted mask holds values above 59.
    """
    refuse_options("context", options)
    content = _read(root / ANNOTATIONS) if (root / ANNOTATIONS).is_file() else None
    for split in TAGGED_SPLITS:
        if keeps_table(root, split, source=root / (ANNOTATIONS if content else CONVERTED)):
            continue
        sources = _from_regions(root, split, content) if content else _from_masks(root, split)
        there = {file.name for file in (root / "JPEGImages").iterdir()}
        found = [source for source in sources if Path(source.image).name in there]
        if not found:
            raise DataError(f"None of the {len(sources)} photos of {split!r} is in {root / 'JPEGImages'}.")
        settings = {"from": ANNOTATIONS if content else CONVERTED}
        prepare_split(root, split, found, classes, tag_source="mask", settings=settings)


def _from_regions(root: Path, split: str, content: Mapping[str, Any]) -> list[Source]:
    changed = (root / ANNOTATIONS).stat().st_mtime
    regions = defaultdict[int, list[dict[str, Any]]](list)
    for annotation in content["annos_segmentation"]:
        regions[annotation["image_id"]].append(annotation)
    sources = []
    for image in content["images"]:
        if image["phase"] == split:
            size = (int(image["height"]), int(image["width"]))
            truth = partial(paint, regions[image["image_id"]], size=size, where=ANNOTATIONS)
            name = Path(image["file_name"]).name
            sources.append(Source(Path(name).stem, f"JPEGImages/{name}", truth, changed=changed))
    return sorted(sources, key=lambda source: source.id)


def paint(annotations: Sequence[Mapping[str, Any]], *, size: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    """Class values `(H, W)` from the regions of an image in the order of the file; 255 where there is none.

    A region of a category outside the 59 is 255, too.

    Args:
        annotations: `category_id` (of the 459-class list) and `segmentation` of each region.
        size: height and width, pixels.
        where: file, for errors.

    Raises:
        DataError: if a region does not fit the image.
    """
    mask = np.full(size, IGNORE_INDEX, np.uint8)
    for annotation in annotations:
        name = f"annotation {annotation.get('id')} in {where}"
        region = region_mask(annotation["segmentation"], height=size[0], width=size[1], where=name)
        mask[region] = _VALUES.get(annotation["category_id"], IGNORE_INDEX)
    return mask


def _from_masks(root: Path, split: str) -> list[Source]:
    path = root / _LISTS / f"{split}.txt"
    ids = path.read_text(encoding="utf-8").split()
    table = id_table(range(1, len(CONTEXT_IDS) + 1), ignored=(0, IGNORE_INDEX))
    sources = []
    for image_id in sorted(set(ids)):
        mask = root / CONVERTED / f"{image_id}.png"
        if not mask.is_file():
            raise DataError(f"Mask {mask} of {path} is missing. Restore it or remove its id from the list.")
        truth = partial(_convert, mask, table)
        sources.append(Source(image_id, f"JPEGImages/{image_id}.jpg", truth, changed=mask.stat().st_mtime))
    return sources


def _convert(path: Path, table: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    return remap(read_truth(path), table, path=path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Download the official file again.") from error
    if not isinstance(content, dict) or not {"images", "annos_segmentation", "categories"} <= set(content):
        raise DataError(f"{path} lacks images, annos_segmentation or categories. Put the official file in its place.")
    listed = {category["category_id"]: category["name"] for category in content["categories"]}
    for category, name in zip(CONTEXT_IDS, CONTEXT_CLASSES, strict=True):
        # One list of names in circulation is in another order than the ids: trust neither without comparing.
        if _plain(listed.get(category, name)) != _plain(name):
            raise DataError(
                f"{path} calls category {category} {listed[category]!r}, expected {name!r}. "
                "The file numbers its categories in another way; put the official file in its place."
            )
    return content


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalpha())
    return {"diningtable": "table"}.get(letters, letters)
