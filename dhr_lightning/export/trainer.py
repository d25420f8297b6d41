"""Hand-off to trainers that take pixel masks: photos, masks, class list, and the files that their loaders look for."""

import json
import shutil
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import yaml
from PIL import Image

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import read_gt_mask
from dhr_lightning.errors import ConfigError
from dhr_lightning.formats.base import Mask, MaskSet

NAME = "trainer"
ABOUT = "photos, masks and class list for trainers: mmsegmentation, Hugging Face datasets, datumaro (lossless)"
Rows = Iterator[tuple[str, Path, Mask]]


def write_trainer(masks: MaskSet, val: Sequence[Record], folder: Path) -> list[str]:
    """Write `train/` of pseudo masks and `val/` of true masks, each with `images/`, `masks/` and lists of both.

    Masks are grey PNGs of class values, 255 = ignore. `classes.txt`, `id2label.json` and `dataset.yaml` name the
    classes; `metadata.jsonl` is for Hugging Face's `imagefolder`, `dataset_meta.json` for datumaro.

    Args:
        masks: pseudo masks of the training images, with their photos.
        val: images of the validation split; those without a true mask are left out. Nothing here trains on them.
        folder: empty.

    Returns:
        notes for people.

    Raises:
        ConfigError: if a photo is not known, since trainers read photos.
    """
    missing = [one for one in masks.masks if one not in masks.images]
    if missing:
        raise ConfigError(
            f"Trainers read photos, but that of {missing[0]} is not known ({len(missing)} of {len(masks.masks)}). Name "
            "their folder (--photos), and leave --no-images out."
        )
    trained = _write_split(folder / "train", ((one, masks.images[one], masks.read(one)) for one in masks.masks))
    judged = _write_split(folder / "val", _true_masks(val))
    _write_classes(folder, masks.classes, splits=["train", *(["val"] if judged else [])])
    said = f"{judged} images with true masks, to evaluate on" if judged else "no split with true masks"
    return [f"train: {trained} images with pseudo masks; val: {said}"]


def _true_masks(records: Sequence[Record]) -> Rows:
    for record in records:
        mask = read_gt_mask(record)
        if mask is not None:
            yield record.id, record.image, mask


def _write_split(folder: Path, rows: Rows) -> int:
    lines = []
    for image_id, photo, mask in rows:
        image, label = f"images/{image_id}{photo.suffix}", f"masks/{image_id}.png"
        for name in (image, label):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, folder / image)
        buffer = BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        write_bytes(folder / label, buffer.getvalue())
        lines.append(json.dumps({"file_name": image, "label_file_name": label}, ensure_ascii=False))
    if lines:
        write_bytes(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def _write_classes(folder: Path, classes: ClassSet, *, splits: Sequence[str]) -> None:
    names = dict(enumerate(classes.names))
    colours = {str(value): colour for value, colour in enumerate(classes.palette[: len(names)].tolist())}
    write_bytes(folder / "classes.txt", "".join(f"{name}\n" for name in names.values()).encode())
    write_bytes(folder / "id2label.json", json.dumps(names, ensure_ascii=False).encode())
    meta = {"label_map": names, "segmentation_colors": list(colours.values())}
    for split in splits:
        write_bytes(folder / split / "dataset_meta.json", json.dumps(meta, ensure_ascii=False).encode())
    content = {
        "path": ".",
        **{split: {"images": f"{split}/images", "masks": f"{split}/masks"} for split in splits},
        "names": names,
        "ignore_index": classes.ignore_index,
        "background": classes.has_background,
    }
    write_bytes(folder / "dataset.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False).encode())
