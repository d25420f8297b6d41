"""Options of a dataset that is a user's own folder, and its class list."""

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.kinds import check_name
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.tag_doubt import check_doubtful_tags
from dhr_lightning.data.datasets.tag_table import SEPARATOR, TagTable, composed, read_tag_table
from dhr_lightning.errors import ArtifactError, ConfigError

BACKGROUND = "background"
UNMATCHED_POLICIES = ("error", "ignore")


@dataclass(frozen=True)
class FolderOptions:
    """`data.options` of `dataset: folder`; paths are relative to the folder.

    Args:
        name: folder of the artifacts; default: the name of the folder itself.
        images: folder of the photos; default: `images` if there is one, else the folder itself.
        table: the table of tags.
        classes: class names, or a text file with one per line; default: the tags of the table, sorted.
        background: whether value 0 means "none of the classes".
        masks: folder of true masks, for evaluation only; default: `masks` if there is one.
        mask_values: class of values in these masks, where they are not those of the class list: a class name,
            `background`, or `ignore` for pixels that are not scored.
        holdout: share of the images in [0, 1) kept for validation where no split is given, chosen by a hash of the id.
        separator: what separates the tags in a cell of the table.
        nothing: tags that mean that an image shows none of the classes, such as `normal`; they are no classes.
        unmatched: what happens to rows without an image: `error`, or `ignore` with a warning.
    """

    name: str | None = None
    images: str | None = None
    table: str = "tags.csv"
    classes: str | tuple[str, ...] | None = None
    background: bool = True
    masks: str | None = None
    mask_values: Mapping[int, str] = field(default_factory=dict)
    holdout: float = 0.1
    separator: str = SEPARATOR
    nothing: tuple[str, ...] = ()
    unmatched: str = "error"

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"Expected data.options.holdout in [0, 1), but got {self.holdout}.")
        if not self.separator:
            raise ConfigError("Expected data.options.separator to be a character or more, but got ''.")
        if self.unmatched not in UNMATCHED_POLICIES:
            raise ConfigError(
                f"Expected data.options.unmatched to be one of {', '.join(UNMATCHED_POLICIES)}, "
                f"but got {self.unmatched!r}."
            )


_TYPES: Mapping[str, tuple[type, ...]] = {
    "name": (str, type(None)),
    "images": (str, type(None)),
    "table": (str,),
    "classes": (str, list, tuple, type(None)),
    "background": (bool,),
    "masks": (str, type(None)),
    "mask_values": (dict,),
    "holdout": (int, float),
    "separator": (str,),
    "nothing": (list, tuple),
    "unmatched": (str,),
}


def read_options(options: Mapping[str, Any]) -> FolderOptions:
    """Check `data.options` and return it typed.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value of the wrong type.
    """
    known = [field.name for field in fields(FolderOptions)]
    for name, value in options.items():
        if name not in known:
            closest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {closest[0]!r}?" if closest else ""
            raise ConfigError(f"Unknown data.options {name!r} of a folder.{hint} Known: {', '.join(known)}.")
        if not isinstance(value, _TYPES[name]) or (name == "holdout" and isinstance(value, bool)):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _TYPES[name])
            raise ConfigError(f"Expected data.options.{name} to be {wanted}, but got {value!r}.")
    for option in ("classes", "nothing"):
        given = options.get(option)
        if isinstance(given, list | tuple):
            odd = next((item for item in given if not isinstance(item, str)), None)
            if odd is not None:
                raise ConfigError(
                    f"Expected every name in data.options.{option} to be text, but got {odd!r}. Quote it."
                )
            options = {**options, option: composed(given)}
    return FolderOptions(**options)


def mask_table(options: FolderOptions, classes: ClassSet) -> bytes | None:
    """Class value of each of the 256 values of a mask file, see `Record.gt_values`; `None` where nothing is mapped.

    Args:
        options: with `mask_values`.
        classes: class list.

    Raises:
        ConfigError: for a value outside 0..255, or a name that is no class.
    """
    if not options.mask_values:
        return None
    known = {**{name: value for value, name in enumerate(classes.names)}, "ignore": classes.ignore_index}
    table = bytearray(range(256))
    for key, name in options.mask_values.items():
        if not str(key).isdecimal() or int(key) > 255:  # keys of a command line are text
            raise ConfigError(f"Expected the values in data.options.mask_values in 0..255, but got {key!r}.")
        value = int(key)
        if name not in known:
            closest = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {closest[0]!r}?" if closest else ""
            raise ConfigError(f"data.options.mask_values: {value} is {name!r}, which is no class.{hint}")
        table[value] = known[name]
    return bytes(table)


def folder_table(root: Path, options: FolderOptions) -> TagTable:
    """The table of tags of a folder, read as its options say."""
    return read_tag_table(root / options.table, separator=options.separator, nothing=options.nothing)


def folder_name(root: Path, options: FolderOptions, *, taken: Sequence[str]) -> str:
    """Name of the artifacts' folder.

    Args:
        root: the user's folder.
        options: its options.
        taken: names of the catalog, which would mix two datasets.

    Raises:
        ConfigError: if the name is taken or cannot name a folder.
    """
    name = options.name or root.resolve().name
    try:
        check_name(name, "name of the dataset")
    except ArtifactError as error:
        raise ConfigError(f"{error} Set data.options.name.") from error
    if name in taken:
        raise ConfigError(
            f"The name {name!r} belongs to a dataset of the catalog; their artifacts would mix. Set data.options.name."
        )
    return name


def folder_classes(root: Path, options: FolderOptions, table: TagTable | None) -> ClassSet:
    """The class list: given in the options, in a file, or the tags of the table.

    Raises:
        ConfigError: if the file is missing, or a name is empty or repeated.
        TagError: if tags of the table may mean something else, see `tag_doubt.check_doubtful_tags`.
    """
    where = "data.options.classes"
    if isinstance(options.classes, str):
        path = root / options.classes
        names, where = read_class_file(path), str(path)
    elif options.classes is not None:
        names = [name.strip() for name in options.classes]
    else:
        names = [name for name, _ in table.names] if table else []
        if table:
            where = str(table.path)
            doubtful = [one for one in table.names if options.background or one[0] != BACKGROUND]
            check_doubtful_tags(table.path, doubtful, separator=options.separator)
    if "" in names or not names:
        raise ConfigError(f"{where} holds {'an empty name' if names else 'no class'}. Write one name per class.")
    if options.background and names[0].strip("_").casefold() != BACKGROUND:
        names = [BACKGROUND, *names]
    return ClassSet(tuple(names), has_background=options.background)


def read_class_file(path: Path) -> list[str]:
    """Class names of a text file, one per line; blank lines are skipped.

    Raises:
        ConfigError: if the file cannot be read or repeats a name.
    """
    try:
        lines = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The class list {path} cannot be read ({error}). Write one name per line.") from error
    seen: dict[str, int] = {}
    for number, name in enumerate((line.strip() for line in lines), start=1):
        if name in seen:
            raise ConfigError(f"{path}, line {number} repeats {name!r} of line {seen[name]}. Remove one of them.")
        if name:
            seen[name] = number
    return list(seen)
