"""The datasets by name."""

from collections.abc import Mapping
from pathlib import Path

from dhr_lightning.data.catalog import ClassSet, DatasetInfo, Record
from dhr_lightning.data.microworld import MICROWORLD_CLASSES, STUFF_NAMES, ensure
from dhr_lightning.data.voc import VOC_CLASSES, read_voc
from dhr_lightning.errors import ConfigError


def _prepare_microworld(root: Path, options: Mapping[str, int]) -> None:
    unknown = set(options) - {"seed", "train", "val"}
    if unknown:
        raise ConfigError(f"Unknown data.options {sorted(unknown)[0]!r} of microworld. Known: seed, train, val.")
    sizes = {"seed": 0, "train": 800, "val": 160, **options}
    ensure(root, seed=sizes["seed"], train=sizes["train"], val=sizes["val"])


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
