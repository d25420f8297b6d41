"""Small folders of photos as users have them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dhr_lightning.data.catalog import DatasetInfo, Record
from dhr_lightning.data.registry import resolve_dataset

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "car": (40, 40, 200)}


def write_photo(path: Path, tags: Sequence[str] = (), size: tuple[int, int] = (24, 16), orientation: int = 0) -> None:
    """Noise with one square per tag; `size` is (width, height) as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(90, 130, (size[1], size[0], 3), dtype=np.uint8)
    for place, tag in enumerate(tags):
        pixels[2:10, 2 + 10 * place : 10 + 10 * place] = COLOURS[tag]
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, **({"exif": exif} if orientation else {}))


def write_folder(root: Path, table: str, images: Mapping[str, Sequence[str]] | Sequence[str]) -> Path:
    """Photos below `root/images` and a table as text."""
    for name in images:
        write_photo(root / "images" / name, images[name] if isinstance(images, Mapping) else ())
    (root / "tags.csv").write_text(table, encoding="utf-8")
    return root


def resolve(root: Path, **options: object) -> DatasetInfo:
    """The catalog entry of a folder; nothing is held out unless the test says so."""
    return resolve_dataset({"dataset": "folder", "root": str(root), "options": {"holdout": 0, **options}})


def read(root: Path, split: str = "train", **options: object) -> dict[str, Record]:
    """Records of a split by id."""
    info = resolve(root, **options)
    return {record.id: record for record in info.read(root, split, info.classes)}


def names(root: Path, split: str = "train", **options: object) -> dict[str, list[str]]:
    """Tag names by id."""
    classes = resolve(root, **options).classes.names
    return {one: [classes[tag] for tag in record.tags] for one, record in read(root, split, **options).items()}
