"""The targets by name, and what holds for all of them: nothing half written, nothing replaced without a word."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dhr_lightning.artifacts.layout import files_below
from dhr_lightning.errors import ArtifactError, ConfigError
from dhr_lightning.export.predictions import Predictions, finished_predictions
from dhr_lightning.export.voc_server import check_voc_server, write_voc_server
from dhr_lightning.formats.base import MaskSet
from dhr_lightning.formats.table import get_format
from dhr_lightning.pipeline.plan import RecipePlan
from dhr_lightning.provenance.views import DataView

log = logging.getLogger("dhr_lightning")


class Target(NamedTuple):
    """One form of export.

    Args:
        check: `(dataset, split)`; refuses a dataset or split that the target cannot take.
        write: `(predictions, folder)`; makes all files in an empty folder.
    """

    check: Callable[[DataView, str], None]
    write: Callable[[Predictions, Path], None]


TARGETS: Mapping[str, Target] = {"voc-server": Target(check_voc_server, write_voc_server)}


def write_export(to: str, plan: RecipePlan, split: str, output: Path, *, force: bool = False) -> None:
    """Write the predictions of a split in the form of a target.

    The files are made in a folder beside `output` that takes its name at the end, so a run that was stopped leaves
    nothing there.

    Args:
        to: name of the target.
        plan: the recipe whose last segmenter predicted them.
        split: split whose predictions are exported.
        output: folder of the export.
        force: replace another export there.

    Raises:
        ConfigError: if the target is unknown, or cannot take this dataset or split.
        ArtifactError: if the predictions are not finished and up to date, or something else is in the place.
        MaskError: if a mask cannot be handed over.
    """
    if to not in TARGETS:
        raise ConfigError(f"Expected --to to be one of {', '.join(TARGETS)}, but got {to!r}.")
    TARGETS[to].check(plan.view, split)
    predictions = finished_predictions(plan, split)
    new = replace_folder(output, lambda made: TARGETS[to].write(predictions, made), force=force)
    log.info("export: %s%d masks in %s", "" if new else "up to date, ", len(predictions.records), output)


def write_format(to: str, masks: MaskSet, output: Path, *, force: bool = False) -> None:
    """Write masks in the format of a tool, as `write_export` does.

    Args:
        to: name of the format.
        masks: what to write.
        output: folder of the export.
        force: replace another export there.

    Raises:
        ConfigError: if the format is unknown.
        ArtifactError: if something else is in the place.
        MaskError: if a mask cannot be handed over.
    """
    write_masks(to, masks, get_format(to).write, output, force=force)


def write_masks(
    to: str, masks: MaskSet, write: Callable[[MaskSet, Path], Sequence[str]], output: Path, *, force: bool
) -> None:
    """Write masks by a function `(masks, empty folder) -> notes`, as `write_format` does by the name of one."""
    notes: list[str] = []
    new = replace_folder(output, lambda made: notes.extend(write(masks, made)), force=force)
    log.info("export: %s%d masks as %s in %s", "" if new else "up to date, ", len(masks.masks), to, output)
    for note in notes:
        log.info("  %s", note)


def replace_folder(output: Path, make: Callable[[Path], None], *, force: bool) -> bool:
    """Make a folder beside `output` that takes its name at the end; returns whether anything is new.

    Raises:
        ArtifactError: if something else is in the place.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.tmp-", dir=output.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        make(made)
        if output.exists() and _content(output) == _content(made):
            return False
        if output.exists():
            _refuse_other(output, made, force=force)
            os.rename(output, Path(temporary) / "before")
        os.rename(made, output)
    return True


def _content(folder: Path) -> dict[str, str]:
    """Digest of each file below a folder, by its name there."""
    files = files_below(folder)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _refuse_other(output: Path, made: Path, *, force: bool) -> None:
    if not output.is_dir():
        raise ArtifactError(f"{output} is a file, but an export is a folder. Choose another --output.")
    foreign = sorted({path.name for path in output.iterdir()} - {path.name for path in made.iterdir()})
    if foreign:
        raise ArtifactError(
            f"{output} holds {foreign[0]!r}, which this export does not write. Choose another --output."
        )
    if not force:
        raise ArtifactError(
            f"{output} holds another export. Choose another --output, or replace it with --force (it is deleted)."
        )
