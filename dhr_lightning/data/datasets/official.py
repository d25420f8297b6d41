"""Reader of the layout of the official DHR release: `<DATA>/<domain>/{image,mask,xml}` and `<DATA>/<DATA>.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import IGNORE_INDEX, ClassSet, DatasetInfo, Record, without_truth
from dhr_lightning.data.datasets.folder_options import BACKGROUND, FolderOptions, folder_name
from dhr_lightning.data.datasets.voc import tags_from_xml
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES
from dhr_lightning.errors import ConfigError, DataError

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "train": ("train_aug", "train"),
    "val": ("validation", "val"),
    "test": ("test",),
}


def resolve_official(data: Mapping[str, Any], *, taken: Sequence[str] = ()) -> DatasetInfo:
    """The catalog entry of `dataset: official`: files of the official DHR release, read where they are.

    Args:
        data: `root`, the folder `<DATA>` itself, and in `options` a `name` for the artifacts (default: the folder's).
        taken: names that belong to other datasets.

    Raises:
        ConfigError: if an option cannot be used.
        DataError: if the folder or its JSON file is missing or of another form.
    """
    if not data.get("root"):
        raise ConfigError("`dataset: official` needs data.root, the folder <DATA> of the release. Add --data.root.")
    options = dict(data.get("options") or {})
    unknown = sorted(set(options) - {"name"})
    if unknown:
        raise ConfigError(f"Unknown data.options {unknown[0]!r} of `dataset: official`. Known: name.")
    root = Path(str(data["root"]))
    return DatasetInfo(
        name=folder_name(root, FolderOptions(name=options.get("name")), taken=taken),
        classes=read_official_classes(root),
        read=read_official,
        root=root,
        has_test=lambda folder: (folder / "test" / "image").is_dir(),
        own_classes=True,
    )


def read_official_classes(root: Path) -> ClassSet:
    """Class list of `<DATA>/<DATA>.json`: `names`, with or without a first `background`.

    Raises:
        DataError: if the file is missing, is not of this form, or has another `ignore` than 255.
    """
    path = root / f"{root.resolve().name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = [str(name) for name in content["names"]]
        ignore = content.get("ignore", IGNORE_INDEX)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as a class list ({error!r}). It is JSON with `names` and `ignore`, "
            "and data.root is the folder <DATA> that holds it."
        ) from error
    if ignore != IGNORE_INDEX:
        raise DataError(f"{path} ignores mask value {ignore!r}, but here {IGNORE_INDEX} is ignored. Convert the masks.")
    return ClassSet(tuple(names), has_background=bool(names) and names[0] == BACKGROUND)


def read_official(root: Path, split: str, classes: ClassSet) -> list[Record]:
    """Records of one split: images of its domain, tags from XML, masks where there are any.

    Args:
        root: the folder `<DATA>`.
        split: `train` reads `train_aug` where it exists; `val` reads `validation`; of `test` the images alone.
        classes: known classes.

    Raises:
        DataError: if the domain or its images are missing, or an XML file is broken.
        TagError: if a tag is unknown.
    """
    domains = [root / name for name in DOMAINS.get(split, (split,))]
    domain = next((folder for folder in domains if (folder / "image").is_dir()), None)
    if domain is None:
        raise DataError(f"Split {split!r} has no images: expected {' or '.join(str(d / 'image') for d in domains)}.")
    images = sorted(path for path in (domain / "image").iterdir() if path.suffix.casefold() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"There is no image in {domain / 'image'}. Restore the files of the release.")
    records = []
    for path in images:
        mask = domain / "mask" / f"{path.stem}.png"
        tags = tags_from_xml(domain / "xml" / f"{path.stem}.xml", classes)
        records.append(Record(path.stem, path, tuple(sorted(set(tags))), mask if mask.is_file() else None))
    return without_truth(records) if split == "test" else records
