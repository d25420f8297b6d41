"""Look at a folder of photos and write its configuration."""

import logging
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from dhr_lightning.artifacts.files import write_bytes
from dhr_lightning.data.catalog import SPLITS, TAGGED_SPLITS, ClassSet
from dhr_lightning.data.datasets.folder import FolderContents, check_tags, look_into
from dhr_lightning.data.datasets.folder_options import FolderOptions, folder_classes, folder_name
from dhr_lightning.data.datasets.tag_table import SEPARATOR, composed
from dhr_lightning.data.files import image_header
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES
from dhr_lightning.data.registry import DATASETS, OWN_DATASETS
from dhr_lightning.errors import ConfigError, DataError

CLASS_FILE = "classes.txt"
# What else people start with; --download fetches pretrained weights by name; `weights list` shows whose they are.
NEXT = (
    ("with a file of weights", "--weights FILE"),
    ("a small network that is trained", "photos --download"),
    ("without any weights, only to see the steps run", "--overlay debug.yaml"),
)
_SHOWN = 3
_WIDTH = 110
_GLUE = "\0"  # a space inside a name, where no line may end
log = logging.getLogger("dhr_lightning")


def init_folder(
    folder: str,
    output: str | None = None,
    name: str | None = None,
    separator: str = SEPARATOR,
    nothing: str | None = None,
    force: bool = False,
) -> int:
    """Look at a folder of photos with a table of tags, and write a configuration for it.

    Args:
        folder: folder with photos (in images/ or directly) and tags.csv.
        output: file to write; default: NAME.yaml here.
        name: name of the dataset; default: the folder's.
        separator: what separates the tags in a cell of the table.
        nothing: tags that mean that an image shows none of the classes, such as normal; with commas between them.
        force: overwrite the file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist. Give the folder that holds your photos and tags.csv.")
    has_list = (root / CLASS_FILE).is_file()
    options = FolderOptions(
        name=name,
        classes=CLASS_FILE if has_list else None,
        separator=separator,
        nothing=composed(nothing.split(",")) if nothing else (),
        unmatched="ignore",
    )
    target = Path(output or f"{folder_name(root, options, taken=(*DATASETS, *OWN_DATASETS))}.yaml")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists. Choose another --output, or overwrite it with --force.")
    table = root / options.table
    if not table.is_file():
        raise DataError(_no_table(root, table))
    contents = look_into(root, options)
    classes = folder_classes(root, options, contents.table)
    check_tags(contents.table, classes)
    findings = describe_contents(root, contents, classes)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, config_text(root, options, contents, classes, findings).encode())
    for line in findings:
        log.info(line)
    log.info("written: %s", target)
    log.info("next: python -m dhr_lightning run --data %s --download", target)
    for what, arguments in NEXT:
        log.info("  %s: ... run %s --data %s", what, arguments, target)
    return 0


def describe_contents(root: Path, contents: FolderContents, classes: ClassSet) -> list[str]:
    """What was found, as lines for people.

    Args:
        root: the user's folder.
        contents: what lies in it.
        classes: its class list.
    """
    suffixes = Counter(path.suffix.casefold() for path in contents.images.values())
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    splits = Counter(contents.splits.values())
    counts = Counter(tag for row in contents.rows.values() for tag in row.tags)
    absent = [name for name in classes.tag_names if name not in counts]
    common = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
    lines = [
        f"{len(contents.images)} images ({kinds})",
        f"{contents.table.path.name}: {contents.table.form} form, {len(contents.rows)} images with a row, "
        f"{contents.merged} repeated rows merged",
        f"{classes.num_tags} classes{' and background' if classes.has_background else ''}; most images: {common}",
        f"splits: {', '.join(f'{splits[name]} {name}' for name in SPLITS if splits[name] or name in TAGGED_SPLITS)} "
        f"({contents.split_source})",
    ]
    if contents.masks:
        lines.append(f"{len(contents.masks)} true masks, for evaluation only")
    else:
        lines.append("no true masks: nothing needs them; the report shows figures without ground truth")
    policy = untagged_policy(contents, classes)
    does = "show no class and train as background" if policy == "background" else "are left out of training"
    lines += _listed(contents.untagged, f"images have no tag and {does} (data.untagged: {policy})")
    lines += _listed([f"{name} ({where})" for name, where, _ in contents.unmatched], "names match no image")
    lines += _listed([f"{path.name} ({why})" for path, why in contents.unread.items()], "files are not read")
    lines += _header_lines(contents)
    lines += _listed([str(path.relative_to(root)) for path in contents.stray_masks], "masks belong to no image")
    lines += _listed(absent, "classes have no image")
    once = [name for name in classes.tag_names if counts[name] == 1]
    lines += _listed(once, "classes have a single image: misspelt, or to be merged?")
    return lines


def untagged_policy(contents: FolderContents, classes: ClassSet) -> str:
    """Policy for untagged training images: `background` if the table says of each that it shows none, else `drop`."""
    untagged = [one for one in contents.untagged if contents.splits[one] == "train"]
    said = all(one in contents.rows and contents.rows[one].negative for one in untagged)
    return "background" if untagged and said and classes.has_background else "drop"


def unmatched_policy(contents: FolderContents) -> str:
    """Policy for rows without an image: `error` where one of them names a file that is there and not read."""
    return "ignore" if contents.unmatched and not any(one.reason for one in contents.unmatched) else "error"


def _header_lines(contents: FolderContents) -> list[str]:
    broken, deep, several = [], [], []
    for path in contents.images.values():
        try:
            header = image_header(path)
        except DataError as error:
            broken.append(f"{path.name} ({error})")
            continue
        deep += [f"{path.name} ({header.bits} bits)"] * (header.bits > 8)
        several += [f"{path.name} ({header.pages})"] * (header.pages > 1)
    return [
        *_listed(broken, "photos cannot be read"),
        *_listed(deep, "photos have more than 8 bits per channel and are refused: scale them to 8 bits"),
        *_listed(several, "files have several pages or frames, of which the first is used"),
    ]


def config_text(
    root: Path, options: FolderOptions, contents: FolderContents, classes: ClassSet, findings: Sequence[str]
) -> str:
    """The configuration file, with the findings and the choices as comments."""
    flow = ", ".join(_scalar(name).replace(" ", _GLUE) for name in classes.tag_names)
    names = "\n".join(textwrap.wrap(f"[{flow}]", _WIDTH, break_long_words=False, break_on_hyphens=False))
    indented = textwrap.indent(names.replace(_GLUE, " "), "      ")
    held_out = contents.split_source.endswith("id")
    found = "".join(f"#   {line}\n" for line in findings)
    has_masks = bool(contents.masks)
    policy = untagged_policy(contents, classes)
    nothing = ", ".join(_scalar(name) for name in options.nothing)
    return (
        f"# Written after a look at the folder:\n{found}"
        "data:\n"
        "  dataset: folder\n"
        f"  root: {_scalar(str(root))}\n"
        f"  untagged: {policy}  # training images without tags: drop, background (they show no class), or error\n"
        "  options:\n"
        f"    name: {_scalar(folder_name(root, options, taken=()))}  # folder of the artifacts\n"
        "    # The order of the classes fixes their values in masks: append new ones at the end.\n"
        f"    classes:\n{indented}\n"
        f"    background: {str(classes.has_background).lower()}  # false: every pixel belongs to one of the classes\n"
        + (f"    separator: {_scalar(options.separator)}  # of tags\n" * (options.separator != SEPARATOR))
        + (f"    nothing: [{nothing}]  # tags that mean: none of the classes\n" * bool(nothing))
        + (f"    holdout: {options.holdout}  # share of the images kept for validation; 0 keeps none\n" * held_out)
        + ("    masks: masks  # true masks, for evaluation only\n" * has_masks)
        + f"    unmatched: {unmatched_policy(contents)}  # rows without an image: error or ignore\n"
    )


def _scalar(text: str) -> str:
    """One YAML scalar, quoted where it must be."""
    flow = str(yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6))
    return flow.strip()[1:-1]


def _listed(items: Sequence[str], what: str) -> list[str]:
    if not items:
        return []
    more = " ..." if len(items) > _SHOWN else ""
    return [f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{more}"]


def _no_table(root: Path, table: Path) -> str:
    example = next((p for p in sorted(root.rglob("*")) if p.suffix.casefold() in IMAGE_SUFFIXES), None)
    name = example.name if example else "cat_01.jpg"
    labels = next(iter(sorted(root.rglob("cls_labels.npy"))), None)
    hint = f" {labels} can be turned into it with `python -m dhr_lightning import tags`." if labels else ""
    return (
        f"There is no table of tags at {table}. Write one in a spreadsheet, saved as `CSV UTF-8`: "
        f'a first line `image,tags`, then lines such as `{name},"cat;dog"`.{hint}'
    )
