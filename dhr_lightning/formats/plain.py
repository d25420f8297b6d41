"""Palette PNGs with a list of classes: our own masks, as any viewer shows them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dhr_lightning.artifacts.files import read_mask, write_bytes, write_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import MaskError
from dhr_lightning.formats.base import Format, Mask, MaskSet, Sizes

CLASSES = "classes.txt"


def write(masks: MaskSet, folder: Path) -> Sequence[str]:
    """Write `masks/ID.png`, `classes.txt` (value 0 in the first line) and `images/` of the known photos."""
    for image_id in masks.masks:
        path = folder / "masks" / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, masks.read(image_id), masks.classes.palette)
    write_bytes(folder / CLASSES, "".join(f"{name}\n" for name in masks.classes.names).encode())
    masks.copy_images(folder / "images")
    return []


def read(source: Path, classes: ClassSet, sizes: Sizes) -> Iterator[tuple[str, Mask]]:
    """Masks of such a folder.

    Raises:
        MaskError: if its class list is another one.
    """
    path = source / CLASSES
    names = tuple(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else classes.names
    if names != classes.names:
        raise MaskError(f"{path} lists {', '.join(names)}, but the data has {', '.join(classes.names)}.")
    folder = source / "masks" if (source / "masks").is_dir() else source
    for file in sorted(folder.rglob("*.png")):
        yield file.relative_to(folder).with_suffix("").as_posix(), read_mask(file)


FORMAT = Format("png", "palette PNGs and a list of classes (lossless); trainers of our kind", write, read)
