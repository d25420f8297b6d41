"""A user's own folder: photos, a table of tags, optional splits and masks."""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.layout import check_id
from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record, without_truth
from dhr_lightning.data.datasets.folder_match import Matcher, Unmatched, choose_splits, has_test_split, match_rows
from dhr_lightning.data.datasets.folder_options import (
    FolderOptions,
    folder_classes,
    folder_name,
    folder_table,
    mask_table,
    read_options,
)
from dhr_lightning.data.datasets.tag_table import TagRow, TagTable, by_composed_name, composed
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES, unread_reason
from dhr_lightning.errors import ConfigError, DataError, TagError

_SHOWN = 3
log = logging.getLogger("dhr_lightning")


@dataclass(frozen=True)
class FolderContents:
    """What lies in a folder.

    Args:
        images: files by id, sorted; an id is the path below the folder of photos without its suffix.
        rows: rows of the table by id, those of one image merged.
        table: the table as it is.
        merged: rows that named an image again.
        unmatched: rows and lines of lists without an image.
        splits: split of every image.
        split_source: where the splits come from, in words.
        masks: true masks by id.
        stray_masks: mask files that belong to no image.
        unread: files beside the images whose kind is not read, and why.
    """

    images: Mapping[str, Path]
    rows: Mapping[str, TagRow]
    table: TagTable
    merged: int
    unmatched: tuple[Unmatched, ...]
    splits: Mapping[str, str]
    split_source: str
    masks: Mapping[str, Path]
    stray_masks: tuple[Path, ...]
    unread: Mapping[Path, str] = field(default_factory=dict)

    @property
    def untagged(self) -> list[str]:
        """Ids of images without a tag."""
        return [image_id for image_id in self.images if image_id not in self.rows or not self.rows[image_id].tags]

    @property
    def rowless(self) -> list[str]:
        """Ids of images that the table does not mention."""
        return [image_id for image_id in self.images if image_id not in self.rows]


def resolve_folder(data: Mapping[str, Any], *, taken: Sequence[str] = ()) -> DatasetInfo:
    """The catalog entry of `dataset: folder`, from its `data` section.

    Args:
        data: `root` and `options` (see `FolderOptions`).
        taken: names that belong to other datasets.

    Raises:
        ConfigError: if an option, the name or the class list cannot be used.
        DataError: if the folder or its table is missing.
    """
    if not data.get("root"):
        raise ConfigError("`dataset: folder` needs data.root, the folder with your photos. Add --data.root PATH.")
    root, options = Path(str(data["root"])), read_options(data.get("options") or {})
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist. Set data.root to the folder with your photos.")
    table = folder_table(root, options) if options.classes is None else None
    return DatasetInfo(
        name=folder_name(root, options, taken=taken),
        classes=folder_classes(root, options, table),
        read=lambda folder, split, classes: read_folder(folder, split, classes, options=options),
        root=root,
        has_test=lambda folder: has_test_split(folder, folder_table(folder, options)),
        own_classes=True,
    )


def read_folder(root: Path, split: str, classes: ClassSet, *, options: FolderOptions) -> list[Record]:
    """Records of one split of a folder, sorted by id; images without tags, and those of `test`, have `tags == ()`.

    Raises:
        DataError: if the training split is empty, or a name matches no image and the policy is `error`.
        TagError: if a tag is not among the classes; names file, line and the nearest class.
    """
    contents = look_into(root, options)
    check_tags(contents.table, classes)
    if contents.unmatched:
        _refuse_unmatched(contents, options)
    if contents.stray_masks:
        _warn(
            f"{len(contents.stray_masks)} masks belong to no image and are left out, first {contents.stray_masks[0]}."
        )
    values = {name: value for value, name in enumerate(classes.names)}
    tags = {image_id: tuple(sorted(values[tag] for tag in row.tags)) for image_id, row in contents.rows.items()}
    gt_values = mask_table(options, classes)
    records = [
        Record(image_id, path, tags.get(image_id, ()), contents.masks.get(image_id), gt_values=gt_values)
        for image_id, path in contents.images.items()
        if contents.splits[image_id] == split
    ]
    if not records and split == "train":
        raise DataError(f"No image of {root} is in the training split ({contents.split_source}). Give it some images.")
    return without_truth(records) if split == "test" else records


def look_into(root: Path, options: FolderOptions) -> FolderContents:
    """List the images of a folder and match the table, the split lists and the masks with them.

    Raises:
        DataError: if there is no image, two images have one id, no row or no mask matches an image, a row leads out of
            the folder, or splits contradict each other.
    """
    photos = _below(root, options.images, "images")
    mask_folder = _below(root, options.masks, "masks", needed=False)
    images = find_images(photos, skip=mask_folder)
    table = folder_table(root, options)
    matcher = Matcher(root, photos, images)
    rows, merged, unmatched = match_rows(table, matcher)
    if not rows:
        first = unmatched[0]
        raise DataError(
            f"None of the {len(table.rows)} rows of {table.path} names an image of {photos}, first {first.name!r} "
            f"({first.where}); an image there is {next(iter(images))!r}.{matcher.hint(first.name)}"
        )
    splits, source, lost = choose_splits(root, rows, table, matcher, holdout=options.holdout)
    masks, stray = _find_masks(mask_folder, images)
    unread = unread_files(photos, skip=mask_folder)
    return FolderContents(images, rows, table, merged, (*unmatched, *lost), splits, source, masks, stray, unread)


def check_tags(table: TagTable, classes: ClassSet) -> None:
    """Refuse tags outside the class list.

    Raises:
        TagError: names file, line and the nearest class.
    """
    unknown = [(line, name) for name, line in table.names if name not in classes.tag_names]
    if not unknown:
        return
    line, name = min(unknown)
    folded = {known.casefold(): known for known in classes.tag_names}
    closest = difflib.get_close_matches(name.casefold(), folded, n=1)
    hint = f" Did you mean {folded[closest[0]]!r}?" if closest else ""
    others = f" ({len(unknown)} unknown tags in all)" if len(unknown) > 1 else ""
    raise TagError(
        f"Unknown tag {name!r} in {table.path}, line {line}{others}.{hint} Known: {', '.join(classes.tag_names)}. "
        "Correct the tag or add it to data.options.classes."
    )


def _below(root: Path, name: str | None, default: str, *, needed: bool = True) -> Path:
    path = root / (name or default)
    if name is not None and not path.is_dir():
        raise DataError(f"The folder {path} does not exist. Correct data.options.{default}.")
    return path if path.is_dir() or not needed else root


def find_images(photos: Path, *, skip: Path | None = None) -> dict[str, Path]:
    """Image files by id, sorted; an id is the path below `photos` without its suffix. Hidden names are passed over.

    Args:
        photos: folder, searched with its sub-folders; links to folders are not followed.
        skip: a folder in it that holds something else.

    Raises:
        DataError: if there is no image, or two images share an id.
        ArtifactError: if an id cannot name a file.
    """
    found: dict[str, Path] = {}
    for path in _files(photos, skip):
        if path.suffix.casefold() not in IMAGE_SUFFIXES or unread_reason(path):
            continue
        image_id = check_id(path.relative_to(photos).with_suffix("").as_posix())
        if image_id in found:
            one, other = sorted((found[image_id], path))
            raise DataError(f"{one} and {other} would share the id {image_id!r}. Rename or remove one of them.")
        found[image_id] = path
    if not found:
        others = "".join(f" {path.name} is not read ({why})." for path, why in [*unread_files(photos).items()][:1])
        raise DataError(f"There is no image in {photos}.{others} Images end in {', '.join(IMAGE_SUFFIXES)}.")
    return dict(sorted(found.items()))


def unread_files(photos: Path, *, skip: Path | None = None) -> dict[Path, str]:
    """Files beside the photos whose kind is known and not read, and why; sorted.

    Args:
        photos: folder, searched with its sub-folders.
        skip: a folder in it that holds something else.
    """
    return {path: why for path in sorted(_files(photos, skip)) if (why := unread_reason(path))}


def _files(photos: Path, skip: Path | None) -> Iterator[Path]:
    for where, folders, names in os.walk(photos):
        folders[:] = [one for one in folders if not one.startswith(".") and Path(where, one) != skip]
        yield from (Path(where, name) for name in names if not name.startswith("."))


def _find_masks(folder: Path, images: Mapping[str, Path]) -> tuple[dict[str, Path], tuple[Path, ...]]:
    if not folder.is_dir():
        return {}, ()
    files = sorted(path for path in folder.rglob("*") if path.suffix.casefold() == ".png")
    known = by_composed_name(images)
    named = [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files]
    by_id = {known.get(composed([name])[0], name): path for name, path in named}
    masks = {image_id: path for image_id, path in by_id.items() if image_id in images}
    if files and not masks:
        raise DataError(
            f"None of the {len(files)} masks in {folder} belongs to an image, first {files[0].name}. "
            f"The mask of image {next(iter(images))!r} is {next(iter(images))}.png."
        )
    return masks, tuple(path for image_id, path in by_id.items() if image_id not in images)


def _refuse_unmatched(contents: FolderContents, options: FolderOptions) -> None:
    unmatched = contents.unmatched
    unread = next((one for one in unmatched if one.reason), None)
    if unread:
        raise DataError(f"{unread.name!r} ({unread.where}) cannot be read. {unread.reason}.")
    first = "; ".join(f"{name!r} ({where})" for name, where, _ in unmatched[:_SHOWN])
    text = f"{len(unmatched)} names match no image: {first}{' ...' if len(unmatched) > _SHOWN else ''}."
    if options.unmatched == "error":
        raise DataError(f"{text} Restore the images, remove the rows, or set data.options.unmatched: ignore.")
    _warn(f"{text} They are ignored (data.options.unmatched: ignore).")


@lru_cache(maxsize=256)
def _warn(text: str) -> None:
    """Say it once: a split is read several times in a run."""
    log.warning("warning: %s", text)


def unused_classes(records: Sequence[Record], classes: ClassSet) -> list[str]:
    """Names of the classes that no record is tagged with."""
    used = {tag for record in records for tag in record.tags}
    return [name for value, name in enumerate(classes.names) if value >= classes.offset and value not in used]
