"""Bring in what others made: artifacts, tags and lists, so that work starts where theirs ended."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhr_lightning.artifacts.files import write_bytes, write_mask
from dhr_lightning.artifacts.kinds import KINDS, check_name, kind_of
from dhr_lightning.artifacts.manifest import canonical, digest_config, digest_file
from dhr_lightning.data.catalog import TAGGED_SPLITS, ClassSet, DatasetInfo, Record
from dhr_lightning.data.datasets.folder import find_images
from dhr_lightning.data.datasets.tag_table import by_composed_name
from dhr_lightning.data.files import image_size
from dhr_lightning.errors import ArtifactError, ConfigError, DataError
from dhr_lightning.formats.table import get_format
from dhr_lightning.importing.read import SUFFIXES, read_foreign
from dhr_lightning.importing.tags import (
    compare_tags,
    match_keys,
    read_list,
    read_tags,
    refuse_existing,
    write_tag_table,
)
from dhr_lightning.pipeline.request import BUILTIN, data_section
from dhr_lightning.progress import track
from dhr_lightning.provenance.identity import plain
from dhr_lightning.provenance.imported import IMPORTED, describe_import, imported_from
from dhr_lightning.provenance.views import DataView

LISTS = ("tags", "ids")
_PHOTO_FOLDERS = ("JPEGImages", "images")
log = logging.getLogger("dhr_lightning")


def import_files(
    kind: str,
    source: str,
    name: str | None = None,
    data: str = BUILTIN,
    root: str | None = None,
    workspace: str = ".",
    split: str | None = None,
    format: str | None = None,
    output: str | None = None,
    force: bool = False,
) -> int:
    """Import masks, CAMs, features, tags or an id list that others made.

    Args:
        kind: mask, label, cam, features or prediction (a folder with one file per image); tags (cls_labels.npy or a
            list with class numbers) or ids (a list of images).
        source: folder or file to import; it is only read.
        name: what recipes call it: --swap STEP=imported/NAME; default: the name of the folder.
        data: name of a file in configs/data, a YAML file, or a folder of photos with tags.
        root: folder of the dataset; default: the one in its configuration.
        workspace: folder that holds artifacts/.
        split: split of the images; default: train, for predictions val.
        format: of masks that a tool wrote (coco, cvat, voc, labelme, labelstudio, yolo-sem, yolo, png); default: a
            folder with one PNG per image.
        output: file that tags or ids are written to; default: tags.csv or SPLIT.txt in the folder of the dataset.
        force: replace what is there.
    """
    config = data_section(data, root, workspace)
    if kind == "tags":
        import_tags(Path(source), config, output=output, force=force)
    elif kind == "ids":
        import_ids(Path(source), config, split=split or "train", output=output, force=force)
    elif kind in KINDS:
        chosen = split or ("val" if kind == "prediction" else "train")
        address = f"{IMPORTED}/{check_name(name or Path(source).resolve().name, 'name of an import')}/{kind}"
        if format is None:
            import_artifact(Path(source), address, config, split=chosen, force=force)
        else:
            import_format(Path(source), format, address, config, split=chosen, force=force)
    else:
        raise ConfigError(f"Expected a kind of {', '.join((*KINDS, *LISTS))}, but got {kind!r}.")
    return 0


def import_format(
    source: Path, name: str, address: str, config: Mapping[str, Any], *, split: str, force: bool = False
) -> None:
    """Read masks in the format of a tool and import them; images that the tool left out are background.

    Args:
        source: file or folder that the tool wrote.
        name: of the format.
        address: `imported/NAME/KIND`.
        config: resolved configuration with a `data` section.
        split: split of the images.
        force: see `import_artifact`.

    Raises:
        ConfigError: if the format is unknown or cannot be read.
        DataError: if it names none of the images; see also `import_artifact`.
        MaskError: if a name is no class.
    """
    form, view = get_format(name), DataView(config["data"])
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.")
    if form.read is None or not kind_of(address).is_mask:
        raise ConfigError(f"{name} holds masks, and {kind_of(address).name} is none. Import kind mask.")
    records = {record.id: record for record in view.records(split)}
    sizes = {one: image_size(record.image) for one, record in records.items()}
    with tempfile.TemporaryDirectory() as folder:
        found, known = 0, by_composed_name(records)
        for name_, mask in form.read(source, view.info.classes, lambda one: sizes.get(known.get(one, one), (1, 1))):
            if (image_id := known.get(name_)) is not None:
                found += 1
                path = Path(folder) / f"{image_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_mask(path, mask, view.info.classes.palette)
        if not found:
            raise DataError(
                f"{source} names none of the {len(records)} images of {split}, such as {next(iter(records))}."
            )
        absent = [one for one in records if not (Path(folder) / f"{one}.png").is_file()]
        if absent and not view.info.classes.has_background:
            raise DataError(f"{len(absent)} images are not in {source}, first {absent[0]}, and there is no background.")
        for one in absent:
            path = Path(folder) / f"{one}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, np.zeros(sizes[one], np.uint8), view.info.classes.palette)
        if absent:
            log.warning("%d images are not in %s and become background, first %s", len(absent), source, absent[0])
        import_artifact(Path(folder), address, config, split=split, force=force, origin=source)


def import_artifact(
    source: Path,
    address: str,
    config: Mapping[str, Any],
    *,
    split: str,
    force: bool = False,
    origin: Path | None = None,
) -> None:
    """Check every file of a folder, then write and seal them as an artifact.

    Args:
        source: folder with one file per image of the split, named by its id.
        address: `imported/NAME/KIND`.
        config: resolved configuration with a `data` section.
        split: split of the images.
        force: replace what was imported from another folder under this name.
        origin: what people know the source as, where it is a folder of the moment.

    Raises:
        DataError: if a file is missing, unreadable or does not fit its image; nothing has been written then.
        ArtifactError: if other files were imported under this name.
    """
    view = DataView(config["data"])
    info, store, kind = view.info, view.store, kind_of(address).name
    records = view.records(split)
    files = _files(source, kind, records)
    before, known = imported_from(store, address, split), str((origin or source).resolve())
    if before not in (None, known) and not force:
        raise ArtifactError(
            f"{store.folder(address, split)} was imported from {before}. Choose another --name, or --force."
        )
    _check(files, kind, records, info.classes)
    content = digest_config({image_id: digest_file(path) for image_id, path in files.items()})
    ids = [record.id for record in records]
    facts = {"folder": known, "content": content}
    identity = describe_import(store, address, split, ids=ids, classes=info.classes, source=facts)
    identity = identity.with_info(config=canonical(plain(config)))
    with store.open_writer(address, split, identity=identity, ids=ids, palette=info.classes.palette) as writer:
        for record in track(records, "importing"):
            if not writer.done(record.id):
                writer.write(record.id, *read_foreign(files[record.id], kind, record, info.classes))
        writer.seal()
    log.info("%s/%s: %d files imported from %s", address, split, len(ids), known)
    log.info("next: run RECIPE --swap STEP=%s, for example --swap propagation=%s", *[address.rpartition("/")[0]] * 2)


def import_tags(source: Path, config: Mapping[str, Any], *, output: str | None, force: bool) -> None:
    """Write `tags.csv` from `cls_labels.npy` or a list with class numbers; names come from the dataset's class list.

    Raises:
        DataError: if no entry belongs to an image of the dataset.
        ConfigError: if the output exists.
    """
    view = DataView(config["data"])
    info, root = view.info, view.root
    path = Path(output) if output else root / "tags.csv"
    refuse_existing(path, force=force)
    tags = read_tags(source, info.classes)
    photos = next((root / name for name in _PHOTO_FOLDERS if (root / name).is_dir()), None)
    known = find_images(photos) if photos else {}
    found, lost = match_keys(tags, known)
    if not found:
        raise DataError(
            f"None of the {len(tags)} entries of {source} belongs to an image of {photos}, first {lost[0]!r}."
        )
    if lost:
        log.warning("warning: %d of %d entries match no image, first %r; left out.", len(lost), len(tags), lost[0])
    imported = {image_id: tags[key] for key, image_id in found.items()}
    others = _tags_of_dataset(info, root)
    write_tag_table(path, imported)
    log.info("%s: tags of %d images from %s", path, len(found), source)
    if others:
        log.info("%s", compare_tags(imported, others))


def _tags_of_dataset(info: DatasetInfo, root: Path) -> dict[str, list[str]]:
    """Tag names by image, as far as the dataset has tags of its own: there may be photos only."""
    tags: dict[str, list[str]] = {}
    for split in TAGGED_SPLITS:
        try:
            records = info.read(root, split, info.classes)
        except DataError as error:
            log.info("tags of %s are not compared: the dataset has none that can be read (%s)", split, error)
            continue
        tags |= {record.id: [info.classes.names[value] for value in record.tags] for record in records}
    return tags


def import_ids(source: Path, config: Mapping[str, Any], *, split: str, output: str | None, force: bool) -> None:
    """Write a list of the family as plain ids, one per line.

    Raises:
        ConfigError: if the output exists.
    """
    root = Path((config.get("data") or {}).get("root") or ".")
    path = Path(output) if output else root / f"{split}.txt"
    refuse_existing(path, force=force)
    ids = [image.id for image in read_list(source)]
    write_bytes(path, "".join(f"{image_id}\n" for image_id in ids).encode())
    log.info("%s: %d ids from %s", path, len(ids), source)


def _files(source: Path, kind: str, records: Sequence[Record]) -> dict[str, Path]:
    if not source.is_dir():
        raise DataError(f"The folder {source} does not exist. Give the folder that holds one file per image.")
    suffixes = SUFFIXES[kind_of(kind).codec.extension]
    files = {}
    for record in records:
        paths = (source / f"{record.id}{suffix}" for suffix in suffixes)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            files[record.id] = path
    missing = [record.id for record in records if record.id not in files]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images have no {' or '.join(suffixes)} file in {source}, "
            f"first {missing[0]}{suffixes[0]}. An artifact covers every image of its split: add the files, or take "
            "the images out of the split."
        )
    return files


def _check(files: Mapping[str, Path], kind: str, records: Sequence[Record], classes: ClassSet) -> None:
    """Read everything once, and count images whose values are not among their tags: a sign of another class list."""
    foreign = []
    for record in track(records, "checking"):
        arrays = read_foreign(files[record.id], kind, record, classes)
        if kind in ("features", "prediction"):
            continue
        values = set(np.unique(arrays[0]).tolist()) - {classes.ignore_index, *record.tags}
        if values - ({0} if classes.has_background else set()):
            foreign.append(record.id)
    if foreign:
        log.warning(
            "warning: %d of %d files of %s hold classes that are no tags of their image, first %s. "
            "If there are many, their class values may mean other classes.",
            len(foreign), len(records), kind, files[foreign[0]],
        )  # fmt: skip
