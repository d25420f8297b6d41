"""YOLO: class values as PNG (lossless), or polygons as text (which have no holes)."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from dhr_lightning.artifacts.files import read_mask, write_bytes
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import IGNORE, Format, Mask, MaskSet, Sizes, painted, parts_of
from dhr_lightning.formats.polygons import outlines

FILE = "data.yaml"
_NUDGE = 0.01  # pixels: readers cut off or round the product with the size, and both must give the pixel


def write_semantic(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `masks/ID.png` (grey class values, 255 = ignore), `images/` of the known photos, and `data.yaml`."""
    for image_id in masks.masks:
        buffer = BytesIO()
        Image.fromarray(masks.read(image_id)).save(buffer, "PNG")
        write_bytes(_path(folder / "masks", image_id, ".png"), buffer.getvalue())
    masks.copy_images(folder / "images")
    _write_names(folder, list(masks.classes.names), masks_dir="masks")
    return []


def read_semantic(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of such a folder; classes go by their names in `data.yaml`.

    Raises:
        MaskError: if a name is no class.
    """
    names = _names(source)
    unknown = [name for name in names.values() if name not in classes.names]
    if unknown:
        raise MaskError(f"{source / FILE}: {unknown[0]!r} is no class. Known: {', '.join(classes.names)}.")
    table = np.full(256, classes.ignore_index, np.uint8)
    for value, name in names.items():
        table[value] = classes.names.index(name)
    folder = source / "masks"
    for path in sorted(folder.rglob("*.png")):
        yield path.relative_to(folder).with_suffix("").as_posix(), table[read_mask(path)]


def write_polygons(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `labels/ID.txt` (class number and corners in shares of the sides), `images/` and `data.yaml`.

    Returns:
        how many holes and how many pixels polygons lose.

    Raises:
        DependencyError: if OpenCV, which finds contours, is not installed.
    """
    holes = lost = 0
    for image_id in masks.masks:
        mask, lines = masks.read(image_id), []
        for name, pixels in parts_of(mask, masks.classes):
            if name == IGNORE:
                continue
            contours, inner = outlines(pixels)
            holes += inner
            lines += [_line(masks.classes.tag_names.index(name), one, mask.shape) for one in contours]
        write_bytes(_path(folder / "labels", image_id, ".txt"), "".join(lines).encode())
        again = _painted("".join(lines).splitlines(), (mask.shape[0], mask.shape[1]), masks.classes, where=image_id)
        lost += int((again != np.where(mask == masks.classes.ignore_index, again, mask)).sum())
    masks.copy_images(folder / "images")
    _write_names(folder, list(masks.classes.tag_names))
    return [f"polygons have no holes: {holes} are filled; {lost} pixels differ from the masks (yolo-sem loses none)"]


def read_polygons(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of such a folder, at the size of each photo.

    Raises:
        MaskError: if a name is no class, or a line is malformed.
    """
    names = _names(source)
    unknown = [name for name in names.values() if name not in classes.tag_names]
    if unknown:
        raise MaskError(f"{source / FILE}: {unknown[0]!r} is no class. Known: {', '.join(classes.tag_names)}.")
    folder = source / "labels"
    for path in sorted(folder.rglob("*.txt")):
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        named = [_renumbered(line, names, classes, where=f"{path}, line {n}") for n, line in enumerate(lines, start=1)]
        yield image_id, _painted(named, sizes(image_id), classes, where=str(path))


def _line(number: int, contour: npt.NDArray[np.int64], size: Sequence[int]) -> str:
    corners = (contour + _NUDGE) / [size[1], size[0]]
    if len(corners) < 3:  # a polygon has three corners at least: one or two pixels
        corners = np.repeat(corners, 3, axis=0)[:3]
    return f"{number} " + " ".join(f"{one:.8f}" for one in corners.ravel()) + "\n"


def _painted(lines: Sequence[str], size: tuple[int, int], classes: ClassSet, *, where: str) -> Mask:
    from PIL import ImageDraw

    parts = []
    for line in lines:
        number, *corners = line.split()
        places = np.array(corners, np.float64).reshape(-1, 2) * [size[1], size[0]] - _NUDGE
        canvas = Image.new("1", (size[1], size[0]))
        ImageDraw.Draw(canvas).polygon([tuple(one) for one in places.round().tolist()], fill=1, outline=1)
        parts.append((int(number) + classes.offset, np.array(canvas)))
    return painted(size, parts)


def _renumbered(line: str, names: dict[int, str], classes: ClassSet, *, where: str) -> str:
    number, _, rest = line.partition(" ")
    if not number.isdecimal() or int(number) not in names or len(rest.split()) < 6 or len(rest.split()) % 2:
        raise MaskError(f"{where}: expected a class number and at least three corners, but got {line[:40]!r}.")
    return f"{classes.tag_names.index(names[int(number)])} {rest}"


def _path(folder: Path, image_id: str, suffix: str) -> Path:
    path = folder / f"{image_id}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_names(folder: Path, names: Sequence[str], **more: Any) -> None:
    content = {"path": ".", "train": "images", "val": "images", **more, "names": dict(enumerate(names))}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    write_bytes(folder / FILE, text.encode())


def _names(source: Path) -> dict[int, str]:
    try:
        content = yaml.safe_load((source / FILE).read_text(encoding="utf-8"))
        names = content["names"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise MaskError(f"{source / FILE} cannot be read ({error}); it names the classes.") from error
    pairs = enumerate(names) if isinstance(names, list) else names.items()
    return {int(value): str(name) for value, name in pairs}


SEMANTIC = Format("yolo-sem", "YOLO's layout with class values as PNG (lossless)", write_semantic, read_semantic)
POLYGONS = Format("yolo", "YOLO polygons as text (no holes; says what is lost)", write_polygons, read_polygons)
