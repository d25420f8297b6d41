"""The datasets by name."""

from collections.abc import Mapping
from pathlib import Path

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.data.microworld import MICROWORLD_CLASSES, STUFF_NAMES, ensure
from dhr_lightning.data.voc import VOC_CLASSES, read_voc
from dhr_lightning.errors import ConfigError


def _prepare_microworld(root: Path, options: Mapping[str, int]) -> None:
    ensure(root, **options)


DATASETS = {
    "microworld": DatasetInfo(
        name="microworld",
        classes=ClassSet(MICROWORLD_CLASSES),
        read=read_voc,
        root=Path("data/microworld"),
        prepare=_prepare_microworld,
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
    ),
}


def get_dataset(name: str) -> DatasetInfo:
    """Look a dataset up.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in DATASETS:
        raise ConfigError(f"Unknown dataset {name!r}. Known: {', '.join(DATASETS)}.")
    return DATASETS[name]


def read_records(name: str, root: str | Path | None, split: str) -> list[Record]:
    """Read the records of a split of a dataset that is in place.

    Raises:
        DataError: if files are missing.
    """
    info = get_dataset(name)
    return info.read(Path(root) if root else info.root, split, info.classes)
