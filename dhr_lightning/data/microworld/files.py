"""Files of one `microworld` image in the VOC layout."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dhr_lightning.data.catalog import voc_palette
from dhr_lightning.data.microworld.grammar import Stuff, Thing
from dhr_lightning.data.microworld.scene import Scene

JPEG_QUALITY = 95
LISTS = "ImageSets/Segmentation"
FOLDERS = ("JPEGImages", "SegmentationClass", "Annotations", LISTS, "Stuff")


def make_folders(root: Path) -> None:
    """Create the folders of the layout and the list of stuff names."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = "".join(f"{stuff.name.lower()}\n" for stuff in Stuff)
    (root / "Stuff" / "names.txt").write_text(names, encoding="utf-8")


def write_scene(root: Path, image_id: str, scene: Scene) -> None:
    """Write image, mask, stuff map and annotation of one scene under `root`."""
    photo = root / "JPEGImages" / f"{image_id}.jpg"
    Image.fromarray(scene.image).save(photo, quality=JPEG_QUALITY, subsampling=0)
    _write_palette_png(root / "SegmentationClass" / f"{image_id}.png", scene.mask)
    _write_palette_png(root / "Stuff" / f"{image_id}.png", scene.stuff)
    tree = ElementTree.ElementTree(describe(image_id, scene))
    ElementTree.indent(tree)
    tree.write(root / "Annotations" / f"{image_id}.xml", encoding="utf-8")


def write_list(root: Path, split: str, image_ids: list[str]) -> None:
    """Write the image list of a split, one id per line."""
    text = "".join(f"{image_id}\n" for image_id in image_ids)
    (root / LISTS / f"{split}.txt").write_text(text, encoding="utf-8")


def describe(image_id: str, scene: Scene) -> ElementTree.Element:
    """The VOC annotation: file name, size, and one object per present class with the box around all its pixels."""
    height, width = scene.mask.shape
    annotation = ElementTree.Element("annotation")
    _add(annotation, folder="microworld", filename=f"{image_id}.jpg")
    _add(ElementTree.SubElement(annotation, "source"), database="microworld")
    _add(ElementTree.SubElement(annotation, "size"), width=width, height=height, depth=3)
    _add(annotation, segmented=1)
    for tag in scene.tags:
        rows, columns = np.nonzero(scene.mask == tag)
        left, right = int(columns.min()), int(columns.max())
        top, bottom = int(rows.min()), int(rows.max())
        cut = left == 0 or top == 0 or right == width - 1 or bottom == height - 1
        thing = ElementTree.SubElement(annotation, "object")
        _add(thing, name=Thing(tag).name.lower(), pose="Unspecified", truncated=int(cut), difficult=0)
        bounds = ElementTree.SubElement(thing, "bndbox")
        _add(bounds, xmin=left + 1, ymin=top + 1, xmax=right + 1, ymax=bottom + 1)
    return annotation


def _add(parent: ElementTree.Element, **fields: str | int) -> None:
    for name, value in fields.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _write_palette_png(path: Path, indices: NDArray[np.uint8]) -> None:
    image = Image.fromarray(indices)
    image.putpalette(voc_palette().tobytes())
    image.save(path)
