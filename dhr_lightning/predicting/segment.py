"""Predict folders of new photos: masks, confidence, overlays and a table, resumable."""

import csv
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dhr_lightning.artifacts.files import read_json, read_mask, write_bytes, write_json
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.data.datasets.folder import find_images, unread_files
from dhr_lightning.data.datasets.tag_table import read_tag_table
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.predicting.model import Model
from dhr_lightning.predicting.prediction import OUTPUTS, Prediction
from dhr_lightning.progress import track

RECORD, TABLE, FAILED = "segment.json", "predictions.csv", "failed.csv"
TILED = "tiled.tsv"  # photos that came in tiles because memory ran out, and the side of these
COLUMNS = ("image", "class", "pixels", "share", "confidence")
log = logging.getLogger("dhr_lightning")


@dataclass(frozen=True)
class Job:
    """What to predict.

    Args:
        images: files by id, which names the outputs.
        output: folder of the outputs.
        tags: tags by id; images without an entry may show any class.
        overlays: whether to write those pictures.
    """

    images: Mapping[str, Path]
    output: Path
    tags: Mapping[str, Sequence[str]]
    overlays: bool = True


def photos_of(names: Sequence[str]) -> dict[str, Path]:
    """Photos by id: of folders the path below them without suffix, of files their name.

    Raises:
        DataError: if a name is no photo and no folder with photos, or two photos would have one id.
    """
    found: dict[str, Path] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            more = find_images(path)
            for file, why in unread_files(path).items():
                log.warning("%s is left out: %s", file, why)
        elif path.is_file():
            if path.suffix.casefold() not in IMAGE_SUFFIXES:
                raise DataError(f"{path} is no photo by its suffix. Photos end in {', '.join(IMAGE_SUFFIXES)}.")
            more = {path.stem: path}
        else:
            raise DataError(f"There is no photo or folder {path}.")
        double = next((one for one in more if one in found), None)
        if double is not None:
            raise DataError(f"{found[double]} and {more[double]} would share the name {double!r}. Predict them apart.")
        found |= more
    return found


def read_allowed(path: Path | None, images: Mapping[str, Path], classes: Sequence[str]) -> dict[str, list[str]]:
    """Tags of images by id, from a table as `tags.csv`.

    Raises:
        DataError: if the table cannot be read, or names no image.
        ConfigError: if a tag is no class of the model.
    """
    if path is None:
        return {}
    table = read_tag_table(path)
    unknown = [(name, line) for name, line in table.names if name not in classes]
    if unknown:
        (name, line), known = unknown[0], ", ".join(classes)
        raise ConfigError(f"{path}, line {line}: the model has no class {name!r}. Its classes: {known}.")
    by_name = {name: one for one, file in images.items() for name in (one, file.name, f"{one}{file.suffix}")}
    found = {by_name[row.image]: list(row.tags) for row in table.rows if row.image in by_name}
    if not found:
        raise DataError(f"{path} names none of the {len(images)} photos, first {table.rows[0].image!r}.")
    return found


def segment(model: Model, job: Job, *, force: bool = False) -> int:
    """Predict every photo that has no mask yet; a photo that cannot be read is named and passed over.

    Returns:
        number of photos that failed; `failed.csv` names them.

    Raises:
        ConfigError: if the output folder holds something else.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # panoramas are welcome
    job.output.mkdir(parents=True, exist_ok=True)
    with FolderLock(job.output / ".lock"):
        _open_output(model, job, force=force)
        rows, failed = [], {}
        for one in track(list(job.images), "segment"):
            try:
                rows += _rows(one, _kept(model, job, one) or _predicted(model, job, one))
            except DataError as error:
                failed[one] = str(error)
                log.warning("%s is left out: %s", job.images[one], error)
        _write_table(job.output / TABLE, COLUMNS, rows)
        failures = job.output / FAILED
        failures.unlink(missing_ok=True)
        if failed:
            _write_table(failures, ("image", "reason"), [{"image": one, "reason": why} for one, why in failed.items()])
    done = len(job.images) - len(failed)
    log.info("%d of %d photos: masks, confidence and %s in %s", done, len(job.images), TABLE, job.output)
    if failed:
        log.error("%d photos could not be predicted, see %s", len(failed), failures)
    return len(failed)


def _open_output(model: Model, job: Job, *, force: bool) -> None:
    """Refuse a folder of other things, or of another model; with `force` the masks of another model go."""
    protocol = asdict(model.engine.inference.settings)
    tags = {one: list(names) for one, names in job.tags.items()}
    chosen = {"settings": asdict(model.settings), "protocol": protocol, "tags": tags}
    identity = digest_config({"model": model.digest, **chosen})
    record = job.output / RECORD
    if record.is_file():
        kept = read_json(record)
        if kept.get("identity") == identity and not force:
            return
        if not force:
            raise ConfigError(
                f"{job.output} holds predictions of another model or with other settings or tags "
                f"({kept.get('model')}). Choose another --output, or replace them with --force."
            )
        for kind, end in OUTPUTS.items():
            for path in (job.output / kind).rglob(f"*{end}"):
                path.unlink()
        (job.output / TILED).unlink(missing_ok=True)
    elif others := sorted(path.name for path in job.output.iterdir() if path.name != ".lock"):
        raise ConfigError(f"{job.output} holds other things, such as {others[0]}. Choose an empty --output.")
    content = {"schema": 1, "identity": identity, "model": model.title, "classes": list(model.classes)}
    content["background"] = model.class_set.has_background
    write_json(record, {**content, "weights": model.about})


def _predicted(model: Model, job: Job, one: str) -> Prediction:
    prediction: Prediction = model.predict(job.images[one], tags=job.tags.get(one))
    named = replace(prediction, name=one)
    named.save(job.output, overlay=job.overlays)
    if named.tile is not None:  # now, and not at the end: an interrupted run does not predict it again
        with (job.output / TILED).open("a", encoding="utf-8") as file:
            file.write(f"{one}\t{named.tile}\n")
    return named


def _kept(model: Model, job: Job, one: str) -> Prediction | None:
    """What an interrupted run wrote of a photo, as a prediction; `None` if it must be predicted.

    A photo that was put there later than its mask is another one.
    """
    mask, confidence = (job.output / kind / f"{one}{OUTPUTS[kind]}" for kind in ("masks", "confidence"))
    if not mask.is_file():
        return None
    photo = job.images[one].stat()
    if max(photo.st_mtime, photo.st_ctime) > mask.stat().st_mtime:
        return None
    with Image.open(confidence) as image:
        values = (np.array(image) / 65535).astype(np.float32)
    return Prediction(read_mask(mask), values, np.empty((0, 0, 3), np.uint8), model.class_set, one)


def _rows(one: str, prediction: Prediction) -> list[dict[str, Any]]:
    return [{"image": one, **row} for row in prediction.shares()]


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())
