"""What `prepare` writes once per dataset, `<root>/prepared`, and the reader of it.

`<split>.csv` holds one image in a row (id, file, tags, where the tags come from), `masks/<split>/<id>.png` its class
values, and `<split>.json` what they were made from. The official files are never changed.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import TEMPORARY_PREFIX, read_json, read_mask, write_bytes, write_json, write_mask
from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.data.catalog import ClassSet, Record, without_truth
from dhr_lightning.data.datasets.tags import is_path, mask_tags, tag_value
from dhr_lightning.errors import DataError, MaskError, TagError
from dhr_lightning.progress import log, track

FOLDER = "prepared"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_HEADER = ["id", "image", "tags", "source"]
_WORKERS = 4  # threads: PNG coding releases the interpreter

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """One image of an official dataset, before it is prepared.

    Args:
        id: file-safe name, unique in its split.
        image: file below the root, with `/`.
        truth: makes the mask `(H, W)` of class values; `None` where there is none.
        tags: class values; `None` takes those of the mask.
        changed: time of the last change of the file the mask is made from, seconds.
    """

    id: str
    image: str
    truth: Callable[[], Mask] | None
    tags: tuple[int, ...] | None = None
    changed: float = 0.0


def prepare_split(
    root: Path,
    split: str,
    sources: Sequence[Source],
    classes: ClassSet,
    *,
    tag_source: str,
    settings: Mapping[str, Any],
) -> int:
    """Write the masks and the table of a split; what an interrupted run finished is kept.

    Args:
        root: folder of the dataset.
        split: `train`, `val` or `test`.
        sources: images in order.
        classes: class list.
        tag_source: what the tags were taken from, for the table.
        settings: everything besides the files that decides the content; other settings make everything again.

    Returns:
        How many masks were written; 0 if all were in place.

    Raises:
        DataError: if two images have one id, or an id is no file name.
        MaskError: if a mask holds ids that the dataset does not have.
    """
    _check_ids(sources, split)
    folder = root / FOLDER / "masks" / split
    folder.mkdir(parents=True, exist_ok=True)
    images = digest_config({source.id: [source.image, source.tags] for source in sources})
    done = _begin(root, split, folder, {**settings, "classes": list(classes.names), "images": images})
    todo = _outdated(sources, folder)
    if done and not todo and (root / FOLDER / f"{split}.csv").is_file():
        return 0
    _parallel(partial(_convert, folder=folder, palette=classes.palette), todo, f"{split} masks")
    _write_table(root, split, sources, _tags(sources, folder, classes, split), classes, tag_source)
    _finish(root, split, len(sources))
    return len(todo)


def _convert(source: Source, *, folder: Path, palette: npt.NDArray[np.uint8]) -> None:
    assert source.truth is not None
    write_mask(folder / f"{source.id}.png", source.truth(), palette)


def _outdated(sources: Sequence[Source], folder: Path) -> list[Source]:
    existing = {file.name: file.stat().st_mtime for file in folder.iterdir()}
    return [source for source in sources if source.truth and existing.get(f"{source.id}.png", -1.0) < source.changed]


def keeps_table(root: Path, split: str, *, source: Path) -> bool:
    """Whether the table of a split stays as it is: the user has written it, or what it was made from is gone.

    Args:
        root: folder of the dataset.
        split: `train`, `val` or `test`.
        source: official labels of the split.
    """
    table = root / FOLDER / f"{split}.csv"
    kept = table.is_file() and not (source.exists() and table.with_suffix(".json").is_file())
    if kept:
        log.info("%s: %s is used as it is", split, table)
    return kept


def read_prepared(root: Path, split: str, classes: ClassSet, *, dataset: str) -> list[Record]:
    """Read one split that `prepare` has written.

    Args:
        root: folder of the dataset.
        split: `train`, `val` or `test`.
        classes: known classes; a tag outside them is an error.
        dataset: name for the command in errors.

    Returns:
        Records in the order of the table; an image without objects has `tags == ()`, one without a mask `mask is None`,
        and those of `test` have neither.

    Raises:
        DataError: if the split is not prepared, an image is missing, or a row points outside the root.
        TagError: if a tag is unknown; names file, line and the nearest known class.
    """
    table = root / FOLDER / f"{split}.csv"
    command = f"`python -m dhr_lightning prepare --data {dataset} --root {root}`"
    if not table.is_file():
        raise DataError(f"Split {split!r} of {dataset} is not prepared: {table} is missing. Run {command}.")
    files = _Folders(root)
    masks = files.names(PurePosixPath(FOLDER, "masks", split))
    records, known = [], dict[str, tuple[int, ...]]()
    for where, image_id, image, names in _rows(table, command):
        tags = known.get(names)
        if tags is None:
            tags = known[names] = tuple(sorted(tag_value(name, classes, where) for name in names.split(";") if name))
        mask = table.parent / "masks" / split / f"{image_id}.png" if f"{image_id}.png" in masks else None
        records.append(Record(id=image_id, image=files.find(image, where), tags=tags, gt_mask=mask))
    if not records:
        raise DataError(f"Split {split!r} is empty: {table} lists no image. Delete it and run {command}.")
    return without_truth(records) if split == "test" else records


def has_prepared_test(root: Path) -> bool:
    """Whether there is a prepared table of test images."""
    return (root / FOLDER / "test.csv").is_file()


def _rows(table: Path, command: str) -> Iterator[tuple[str, str, str, str]]:
    """Place, id, image and tags of each row."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != _HEADER:
            raise DataError(f"{table} does not start with the line {','.join(_HEADER)}. Delete it and run {command}.")
        for line, row in enumerate(reader, start=2):
            where = f"{table}, line {line}"
            if len(row) != len(_HEADER):
                raise DataError(
                    f"{where} has {len(row)} fields, expected {len(_HEADER)}. Delete the file, run {command}."
                )
            if is_path(row[0]):
                raise DataError(f"{where}: {row[0]!r} is no image id but a path. Give a name alone.")
            yield where, row[0], row[1], row[2]


def remap(mask: Mask, table: npt.NDArray[np.int16], *, path: Path) -> Mask:
    """Look class values up.

    Args:
        mask: `(H, W)` official ids.
        table: `(256,)` class value of each id, -1 where the dataset has no such id.
        path: file, for the error.

    Raises:
        MaskError: names the ids that do not exist, with their pixel counts.
    """
    values = table[mask]
    if (values < 0).any():
        ids, counts = np.unique(mask[values < 0], return_counts=True)
        found = ", ".join(f"{v} ({c} px)" for v, c in zip(ids, counts, strict=True))
        raise MaskError(
            f"Mask {path} holds ids that this dataset does not have: {found}. "
            "It may be converted already or belong to another dataset; put the official file in its place."
        )
    return values.astype(np.uint8)


class _Folders:
    """Finds files below a root by listing each folder once: asking for 10^5 files takes minutes on a network."""

    def __init__(self, root: Path) -> None:
        self._root, self._seen = root, dict[str, tuple[Path, frozenset[str]]]()

    def names(self, folder: PurePosixPath) -> frozenset[str]:
        return self._look(folder.as_posix())[1]

    def _look(self, folder: str) -> tuple[Path, frozenset[str]]:
        if folder not in self._seen:
            path = self._root / folder
            self._seen[folder] = path, frozenset(os.listdir(path)) if path.is_dir() else frozenset()
        return self._seen[folder]

    def find(self, name: str, where: str) -> Path:
        folder, _, leaf = name.rpartition("/")  # as text: making a path of each of 10^5 names takes seconds
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise DataError(f"{where} points outside the dataset: {name!r}. Give a path below {self._root}.")
        path, names = self._look(folder)
        if leaf not in names:
            raise DataError(f"Image {self._root / name} of {where} is missing. Restore the file or remove the line.")
        return path / leaf


def _check_ids(sources: Sequence[Source], split: str) -> None:
    seen = set[str]()
    for source in sources:
        if source.id in seen:
            raise DataError(f"Two images of split {split!r} have the id {source.id!r}. Remove one of the files.")
        if is_path(source.id):
            raise DataError(f"Image id {source.id!r} of split {split!r} is no file name. Rename the image.")
        seen.add(source.id)


def _begin(root: Path, split: str, folder: Path, settings: Mapping[str, Any]) -> bool:
    """Remove masks made with other settings and mark the split as unfinished; true if it was finished before."""
    marker = root / FOLDER / f"{split}.json"
    before = read_json(marker) if marker.is_file() else {}
    current = json.loads(json.dumps(settings))
    if before.get("settings") == current and before.get("complete"):
        return True
    made_with = {key: value for key, value in (before.get("settings") or {}).items() if key != "images"}
    stale = [path for path in folder.iterdir() if path.suffix == ".png"]
    if made_with != {key: value for key, value in current.items() if key != "images"}:
        if stale and not before:
            raise DataError(
                f"{folder} holds {len(stale)} masks that `prepare` did not make, first {stale[0].name}. "
                "Move them away and run it again."
            )
        if stale:
            log.info("%s: settings changed, %d masks are made again", split, len(stale))
        for path in stale:
            path.unlink()
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
    write_json(marker, {"settings": current, "complete": False})
    return False


def _finish(root: Path, split: str, images: int) -> None:
    marker = root / FOLDER / f"{split}.json"
    write_json(marker, {**read_json(marker), "complete": True, "count": images})


def _parallel(function: Callable[[Source], Any], sources: Sequence[Source], what: str) -> list[Any]:
    if len(sources) <= _WORKERS:
        return [function(source) for source in sources]
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        return list(track(pool.map(function, sources), what, total=len(sources)))
    finally:
        pool.shutdown(cancel_futures=True)


def _tags(sources: Sequence[Source], folder: Path, classes: ClassSet, split: str) -> list[tuple[int, ...]]:
    def of(source: Source) -> tuple[int, ...]:
        if source.tags is not None:
            return source.tags
        if source.truth is None:
            raise TagError(f"Image {source.id!r} has neither tags nor a mask to take them from. Add one of them.")
        return mask_tags(read_mask(folder / f"{source.id}.png"), classes)

    return _parallel(of, sources, f"{split} tags")


def _write_table(
    root: Path,
    split: str,
    sources: Sequence[Source],
    tags: Sequence[tuple[int, ...]],
    classes: ClassSet,
    tag_source: str,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for source, values in zip(sources, tags, strict=True):
        names = ";".join(classes.names[value] for value in values)
        writer.writerow([source.id, source.image, names, tag_source])
    write_bytes(root / FOLDER / f"{split}.csv", text.getvalue().encode(), durable=True)
