"""What every format is given and gives: masks of class values with their class list."""

import base64
import io
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.artifacts.files import read_json, read_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError

Mask = npt.NDArray[np.uint8]
IGNORE = "ignore"  # name of pixels without a class, in formats that name everything
Sizes = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class MaskSet:
    """Masks to export.

    Args:
        masks: files of class values (palette or grey PNG) by image id.
        images: photos by id, where they are known.
        classes: class list.
    """

    masks: Mapping[str, Path]
    images: Mapping[str, Path]
    classes: ClassSet

    def read(self, image_id: str) -> Mask:
        """Mask `(H, W)` of an image.

        Raises:
            MaskError: if it holds a value that is neither a class nor `ignore`.
        """
        mask = read_mask(self.masks[image_id])
        unknown = set(np.unique(mask).tolist()) - set(range(self.classes.num_classes)) - {self.classes.ignore_index}
        if unknown:
            raise MaskError(
                f"{self.masks[image_id]} holds {min(unknown)}, which is no class: there are "
                f"{self.classes.num_classes}, from 0. Give the class list that these masks mean (--data)."
            )
        return mask

    def file_name(self, image_id: str) -> str:
        """Name of the photo below the folder of photos; `.jpg` where it is not known."""
        path = self.images.get(image_id)
        return f"{image_id}{path.suffix if path else '.jpg'}"

    def copy_images(self, folder: Path) -> int:
        """Copy the known photos below a folder; returns how many."""
        for image_id, path in self.images.items():
            target = folder / self.file_name(image_id)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return len(self.images)


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: on the command line.
        about: one line for people: who reads it, and what it cannot hold.
        write: `(masks, empty folder) -> notes for people`.
        read: `(file or folder, classes, size of an image by id) -> (id, mask)`; `None` if it cannot be read back.
    """

    name: str
    about: str
    write: Callable[[MaskSet, Path], Sequence[str]]
    read: Callable[[Path, ClassSet, Sizes], Iterator[tuple[str, Mask]]] | None = None


def parts_of(mask: Mask, classes: ClassSet) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Name and pixels of every class in a mask besides the background, `ignore` last."""
    names = {value: name for value, name in enumerate(classes.names) if value >= classes.offset}
    names[classes.ignore_index] = IGNORE
    return [(names[value], mask == value) for value in np.unique(mask).tolist() if value in names]


def value_of(name: str, classes: ClassSet, *, where: str) -> int:
    """Class value of a name; `ignore` and the background are names, too.

    Raises:
        MaskError: if it is no class.
    """
    name = unicodedata.normalize("NFC", name)
    if name == IGNORE and IGNORE not in classes.names:
        return classes.ignore_index
    if name not in classes.names:
        raise MaskError(f"{where}: {name!r} is no class. Known: {', '.join(classes.names)}. Rename it there.")
    return classes.names.index(name)


def painted(size: tuple[int, int], parts: Iterable[tuple[int, npt.NDArray[np.bool_]]]) -> Mask:
    """A mask of background with parts painted over it, later ones over earlier ones."""
    mask = np.zeros(size, np.uint8)
    for value, pixels in parts:
        mask[pixels] = value
    return mask


def id_of(file_name: str) -> str:
    """Image id of the name of a photo: without its suffix and without a leading folder of photos."""
    path = PurePosixPath(unicodedata.normalize("NFC", file_name).replace("\\", "/"))
    parts = path.parts[1:] if path.parts[0] in ("images", "JPEGImages") and len(path.parts) > 1 else path.parts
    return PurePosixPath(*parts).with_suffix("").as_posix()


def png_text(pixels: npt.NDArray[np.bool_]) -> str:
    """Pixels `(H, W)` as a PNG of 0 and 1 in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def png_pixels(text: str) -> npt.NDArray[np.bool_]:
    """Inverse of `png_text`, also of PNGs of 0 and 255 and of one bit."""
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
        return np.array(image).astype(bool)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file that others wrote.

    Raises:
        ArtifactError: if it is none.
    """
    return read_json(path)
