"""Reader of the PASCAL VOC layout; the built-in dataset is written in the same layout."""

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.datasets.tags import is_path, tag_value
from dhr_lightning.errors import DataError, TagError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_LISTS = "ImageSets/Segmentation"
_MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(root: Path, split: str, classes: ClassSet) -> list[Record]:
    """Read one split: ids from `ImageSets/Segmentation/<split>.txt`, tags from XML or `tags.csv`, masks if present.

    Args:
        root: the folder that holds `JPEGImages` (usually `VOCdevkit/VOC2012`).
        split: `train` reads `train_aug.txt` where it exists, as is the custom of the field; `test` has images alone.
        classes: known classes; a tag outside them is an error.

    Returns:
        Records in the order of the list; images without tags have `tags == ()`.

    Raises:
        DataError: if the list or an image is missing, or the split is empty.
        TagError: if a tag is unknown (names file, line and the nearest known class) or `tags.csv` has no header.
    """
    ids = read_ids(list_path(root, split))
    names = {image_id: _find_image(root, image_id, split) for image_id in ids}
    if split == "test":
        return [Record(image_id, path, tags=()) for image_id, path in names.items()]
    table = root / "tags.csv"
    annotations = root / "Annotations"
    if not annotations.is_dir() and not table.is_file():
        raise DataError(f"{root} has neither Annotations/*.xml nor tags.csv, so no image has a tag. Add one of them.")
    from_csv = {} if annotations.is_dir() else _tags_from_csv(table, classes)
    # The official masks of val are finer than the augmented ones of the same photos.
    mask_folders = [root / name for name in (_MASK_FOLDERS if split == "train" else reversed(_MASK_FOLDERS))]
    stuff, records = root / "Stuff", []
    for image_id in ids:
        xml = annotations / f"{image_id}.xml"
        tags = tags_from_xml(xml, classes) if annotations.is_dir() else from_csv.get(image_id, ())
        masks = (folder / f"{image_id}.png" for folder in mask_folders)
        records.append(
            Record(
                id=image_id,
                image=names[image_id],
                tags=tuple(sorted(set(tags))),
                gt_mask=next((mask for mask in masks if mask.is_file()), None),
                stuff=stuff / f"{image_id}.png" if stuff.is_dir() else None,
            )
        )
    return records


def has_test_list(root: Path) -> bool:
    """Whether there is a list of test images."""
    return (root / _LISTS / "test.txt").is_file()


def list_path(root: Path, split: str) -> Path:
    """The list of a split; for `train` the augmented one where it exists.

    Raises:
        DataError: if there is none.
    """
    folder = root / _LISTS
    candidates = [folder / "train_aug.txt", folder / "train.txt"] if split == "train" else [folder / f"{split}.txt"]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataError(
            f"Split {split!r} has no list: expected {' or '.join(str(p) for p in candidates)}. "
            "Check --data.root, or run `python -m dhr_lightning prepare` for the built-in dataset."
        )
    return path


def read_ids(path: Path) -> list[str]:
    """Image ids of a list, in order.

    Raises:
        DataError: if the list is missing or empty, repeats an id, or holds one that is no file name.
    """
    if not path.is_file():
        raise DataError(f"List {path} is missing. Unpack the official archive again.")
    ids = path.read_text(encoding="utf-8-sig").split()
    if not ids:
        raise DataError(f"Split {path.stem!r} is empty: {path} lists no image id. Add ids, one in a line.")
    if len(set(ids)) != len(ids):
        first = next(image_id for i, image_id in enumerate(ids) if image_id in ids[:i])
        raise DataError(
            f"{path} lists {len(ids) - len(set(ids))} ids more than once, first {first!r}. Remove the repeats."
        )
    outside = next((line for line, image_id in enumerate(ids, start=1) if is_path(image_id)), 0)
    if outside:
        raise DataError(f"{path}, line {outside}: {ids[outside - 1]!r} is no image id but a path. Give names alone.")
    return ids


def _find_image(root: Path, image_id: str, split: str) -> Path:
    for suffix in _IMAGE_SUFFIXES:
        path = root / "JPEGImages" / f"{image_id}{suffix}"
        if path.is_file():
            return path
    raise DataError(
        f"Image {image_id!r} of split {split!r} is missing: {root / 'JPEGImages' / image_id}.jpg. "
        "Restore the file or remove the id from the list."
    )


def tags_from_xml(path: Path, classes: ClassSet) -> tuple[int, ...]:
    """Class values of the objects in an annotation file; none if there is no file.

    Raises:
        DataError: if the file is not XML.
        TagError: if a name is unknown; names file, line and the nearest class.
    """
    if not path.is_file():
        return ()
    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not valid XML ({error}). Restore the annotation file.") from error
    names = [(node.text or "").strip() for node in tree.iterfind("object/name")]
    return tuple(tag_value(name, classes, _where(path, name, classes)) for name in names)


def _where(path: Path, name: str, classes: ClassSet) -> str:
    if name in classes.tag_names:
        return str(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((number for number, text in enumerate(lines, start=1) if f"<name>{name}<" in text), None)
    return f"{path}, line {line}" if line else str(path)


def _tags_from_csv(path: Path, classes: ClassSet) -> dict[str, tuple[int, ...]]:
    tags: dict[str, tuple[int, ...]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            names = [name.strip() for name in row[1].split(";") if name.strip()] if len(row) > 1 else []
            if line == 1 and names and set(names) <= set(classes.tag_names):
                raise TagError(f"{path} has no header: line 1 names an image, {row[0]!r}. Put `image,tags` above it.")
            if line == 1 or not row:
                continue
            tags[row[0].strip()] = tuple(tag_value(name, classes, f"{path}, line {line}") for name in names)
    return tags
