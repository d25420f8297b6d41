"""Masks in colours with a table of colours: PASCAL VOC's layout, and CVAT's "Segmentation mask 1.1"."""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.artifacts.files import write_bytes, write_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import IGNORE, Format, Mask, MaskSet, Sizes, value_of

LABELS, LIST = "labelmap.txt", "ImageSets/Segmentation/default.txt"
MASKS, OBJECTS = "SegmentationClass", "SegmentationObject"
ARCHIVE = "cvat.zip"


def label_colours(classes: ClassSet, *, ignored: bool) -> dict[str, tuple[int, int, int]]:
    """Colour of every class by name, background in black; each colour once.

    Raises:
        MaskError: if two classes have one colour.
    """
    palette = classes.palette
    found = {name: _colour(palette[value]) for value, name in enumerate(classes.names)}
    if not classes.has_background:
        found = {"background": (0, 0, 0), **found}
    if ignored:
        found[IGNORE] = _colour(palette[classes.ignore_index])
    double = [name for name, colour in found.items() if list(found.values()).count(colour) > 1]
    if double:
        raise MaskError(f"{' and '.join(double[:2])} have one colour, so colours cannot tell them. Export to coco.")
    return found


def _colour(row: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
    red, green, blue = (int(one) for one in row)
    return red, green, blue


def write_voc(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `SegmentationClass/`, `labelmap.txt`, the list of images, and `JPEGImages/` of the known photos."""
    ignored = _write_masks(masks, folder, masks.masks)
    _write_tables(masks, folder, list(masks.masks), ignored=ignored)
    masks.copy_images(folder / "JPEGImages")
    return []


def write_cvat(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write the same with `SegmentationObject/` as one archive, too; CVAT refuses images without any class."""
    shown = [one for one in masks.masks if (masks.read(one) >= masks.classes.offset).any()]
    ignored = _write_masks(masks, folder, shown)
    for image_id in shown:  # one object for each class: CVAT asks for both pictures
        write_mask(_path(folder, OBJECTS, image_id), masks.read(image_id), masks.classes.palette)
    _write_tables(masks, folder, shown, ignored=ignored)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder).as_posix())
    write_bytes(folder / ARCHIVE, buffer.getvalue())
    empty = len(masks.masks) - len(shown)
    return [f"{empty} images without any class are left out: CVAT refuses empty masks"] if empty else []


def _path(folder: Path, kind: str, image_id: str) -> Path:
    path = folder / kind / f"{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_masks(masks: MaskSet, folder: Path, ids: Iterable[str]) -> bool:
    """Write the palette PNGs; returns whether any pixel is ignored."""
    ignored = False
    for image_id in ids:
        mask = masks.read(image_id)
        ignored |= bool((mask == masks.classes.ignore_index).any())
        write_mask(_path(folder, MASKS, image_id), mask, masks.classes.palette)
    return ignored


def _write_tables(masks: MaskSet, folder: Path, ids: Sequence[str], *, ignored: bool) -> None:
    colours = label_colours(masks.classes, ignored=ignored)
    odd = next((name for name in colours if ":" in name or "\n" in name), None)
    if odd is not None:
        raise MaskError(f"The class {odd!r} holds a colon, which separates the parts of {LABELS}. Export to coco.")
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items()]
    write_bytes(folder / LABELS, ("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n").encode())
    (folder / LIST).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / LIST, "".join(f"{one}\n" for one in ids).encode())


def read(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of a folder or archive of either form: colours are looked up in its `labelmap.txt`.

    Raises:
        MaskError: if the table is missing, a label is no class, or a mask holds a colour that is not in the table.
    """
    files = _files(source)
    table = next((name for name in files if name.endswith(LABELS)), None)
    if table is None:
        raise MaskError(f"{source} has no {LABELS}, which says what the colours mean. Export it again with labels.")
    lines = files[table]().decode("utf-8-sig").splitlines()
    keys, values = [], []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            name, colour = line.split(":")[:2]
            keys.append(_key(np.array([[[int(one) for one in colour.split(",")]]]))[0, 0])
            background = name == "background" and not classes.has_background
            values.append(classes.ignore_index if background else value_of(name, classes, where=f"{source}/{table}"))
    prefix = table[: -len(LABELS)]
    for name, load in files.items():
        if name.startswith(f"{prefix}{MASKS}/") and name.endswith(".png"):
            with Image.open(BytesIO(load())) as image:
                found = _key(np.array(image.convert("RGB"), np.int64))
            unknown = ~np.isin(found, keys)
            if unknown.any():
                key = int(found[unknown][0])
                raise MaskError(
                    f"{name} of {source} holds the colour {key >> 16},{key >> 8 & 255},{key & 255}, which {LABELS} "
                    "does not name."
                )
            order = np.argsort(keys)
            mask = np.array(values, np.uint8)[order][np.searchsorted(np.array(keys)[order], found)]
            yield name[len(f"{prefix}{MASKS}/") : -len(".png")], mask


def _key(colours: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    keys: npt.NDArray[np.int64] = (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
    return keys


def _files(source: Path) -> dict[str, Callable[[], bytes]]:
    """Readers of all files of a folder or archive, by name."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        return {path.relative_to(source).as_posix(): path.read_bytes for path in paths}
    with zipfile.ZipFile(source) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return {name: partial(bytes, data) for name, data in content.items()}


VOC = Format("voc", "PASCAL VOC's layout with a table of colours (lossless); trainers, datumaro", write_voc, read)
CVAT = Format("cvat", "CVAT's `Segmentation mask 1.1` as a zip (lossless)", write_cvat, read)
