"""The datasets by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record, subsample_evenly
from dhr_lightning.data.datasets.folder import resolve_folder
from dhr_lightning.data.datasets.labels import ADE_CLASSES, COCO_CLASSES, CONTEXT_CLASSES, STUFF_CLASSES
from dhr_lightning.data.datasets.official import resolve_official
from dhr_lightning.data.datasets.prepared import has_prepared_test, read_prepared
from dhr_lightning.data.datasets.voc import VOC_CLASSES, has_test_list, read_voc
from dhr_lightning.data.microworld.generate import MICROWORLD_CLASSES, STUFF_NAMES, ensure
from dhr_lightning.errors import ConfigError

Reader = Callable[[Path, str, ClassSet], list[Record]]


def _prepare_microworld(root: Path, options: Mapping[str, Any]) -> None:
    unknown = set(options) - {"seed", "train", "val"}
    if unknown:
        raise ConfigError(f"Unknown data.options {sorted(unknown)[0]!r} of microworld. Known: seed, train, val.")
    sizes = {"seed": 0, "train": 800, "val": 160, **options}
    ensure(root, seed=sizes["seed"], train=sizes["train"], val=sizes["val"])


def _prepared(name: str, classes: ClassSet, root: str) -> DatasetInfo:
    read = partial(read_prepared, dataset=name)
    return DatasetInfo(name=name, classes=classes, read=read, root=Path(root), has_test=has_prepared_test)


# Colours that stay apart on small pictures, in the order of the classes.
_MICROWORLD_COLOURS = (
    (0, 0, 0), (230, 25, 75), (245, 130, 48), (0, 130, 200), (70, 240, 240), (25, 25, 140),
    (255, 225, 25), (60, 180, 75), (145, 30, 180), (240, 50, 230), (170, 255, 195),
)  # fmt: skip

DATASETS = {
    "microworld": DatasetInfo(
        name="microworld",
        classes=ClassSet(MICROWORLD_CLASSES, colours=_MICROWORLD_COLOURS),
        read=read_voc,
        root=Path("data/microworld"),
        prepare=_prepare_microworld,
        is_builtin=True,
        adjacent=(("bottle", "table"), ("rider", "bike"), ("dog", "cat"), ("bus", "car")),
        background_pairs=(("rails", "train"), ("water", "boat")),
        head=("cat", "car", "table"),
        tail=("dog", "bus", "rider", "boat"),
        stuff_names=STUFF_NAMES,
    ),
    "voc": DatasetInfo(
        name="voc",
        classes=ClassSet(VOC_CLASSES),
        read=read_voc,
        root=Path("data/VOCdevkit/VOC2012"),
        has_test=has_test_list,
    ),
    "coco": _prepared("coco", ClassSet(COCO_CLASSES), "data/coco2014"),
    "context": _prepared("context", ClassSet(CONTEXT_CLASSES, has_background=False), "data/VOCdevkit/VOC2010"),
    "ade": _prepared("ade", ClassSet(ADE_CLASSES, has_background=False), "data/ADEChallengeData2016"),
    "stuff": _prepared("stuff", ClassSet(STUFF_CLASSES, has_background=False), "data/coco_stuff164k"),
}


# Datasets whose class list is found in the user's files.
OWN_DATASETS = {"folder": resolve_folder, "official": resolve_official}


def resolve_dataset(data: Mapping[str, Any]) -> DatasetInfo:
    """The entry for a `data` section: of the catalog, or made from the user's files.

    Args:
        data: `dataset` (default: microworld), and `root` and `options` where the class list depends on them; `limit`:
            at most this many images of each split, to try something out.

    Raises:
        ConfigError: if the dataset is unknown or its options cannot be used.
        DataError: if the user's files are missing or contradict each other.
    """
    name, limit = str(data.get("dataset") or "microworld"), data.get("limit")
    own = OWN_DATASETS.get(name)
    info = get_dataset(name) if own is None else own(data, taken=(*DATASETS, *OWN_DATASETS))
    if limit is None:
        return info
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"Expected data.limit to be a number of images from 1 on, but got {limit!r}.")
    return replace(info, read=partial(_read_some, read=info.read, limit=limit))


def _read_some(root: Path, split: str, classes: ClassSet, *, read: Reader, limit: int) -> list[Record]:
    """Images of a split that lie evenly over its list, at most `limit`; of the training images those with a tag."""
    records = read(root, split, classes)
    tagged = [record for record in records if record.tags] if split == "train" else records
    return subsample_evenly(tagged or records, limit)


def get_dataset(name: str) -> DatasetInfo:
    """Look a dataset of the catalog up; see `resolve_dataset` for one with the user's own classes.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in DATASETS:
        raise ConfigError(f"Unknown dataset {name!r}. Known: {', '.join((*DATASETS, *OWN_DATASETS))}.")
    return DATASETS[name]


def read_records(name: str, root: str | Path | None, split: str) -> list[Record]:
    """Read the records of a split of a dataset that is in place.

    Raises:
        DataError: if files are missing.
    """
    info = resolve_dataset({"dataset": name, "root": root})
    return info.read(Path(root) if root else info.root, split, info.classes)
