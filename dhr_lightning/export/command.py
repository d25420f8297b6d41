"""The command `export`."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dhr_lightning.data.catalog import Record
from dhr_lightning.errors import ConfigError
from dhr_lightning.export.masks import masks_of_folder, masks_of_recipe
from dhr_lightning.export.models import MODELS, export_model
from dhr_lightning.export.targets import TARGETS, write_export, write_format, write_masks
from dhr_lightning.export.trainer import ABOUT, write_trainer
from dhr_lightning.export.trainer import NAME as TRAINER
from dhr_lightning.formats.base import MaskSet
from dhr_lightning.formats.table import FORMATS
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.request import (
    BUILTIN,
    add_options,
    data_section,
    names_folder,
    split_overrides,
    to_request,
)
from dhr_lightning.pipeline.status import first_request
from dhr_lightning.provenance.views import DataView

KNOWN = (*TARGETS, *FORMATS, TRAINER, *MODELS)
log = logging.getLogger("dhr_lightning")


def run_export(arguments: Sequence[str]) -> int:
    """Parse the command line and write."""
    words, overrides = split_overrides(arguments)
    options = _parser().parse_args(words)
    request = to_request(options, overrides)
    if options.to not in KNOWN:
        raise ConfigError(f"There is no --to {options.to!r}. Known: {', '.join(KNOWN)}.")
    if options.to in MODELS:
        name, output = options.recipe or request.default_recipe(), Path(options.output or MODELS[options.to])
        export_model(options.to, name, request, output, step=options.step, force=options.force)
        return 0
    if options.recipe and names_folder(options.recipe):
        return _export_folder(options)
    plan = make_plan(first_request(request))
    split = options.split or ("test" if options.to in TARGETS else None)
    name = f"{options.to}_{split}" if split else options.to
    default = plan.view.workspace / "exports" / plan.view.info.name / name
    target = Path(options.output) if options.output else default
    if options.to in TARGETS:
        write_export(options.to, plan, split or "test", target, force=options.force)
        return 0
    if options.to == TRAINER:
        val = plan.view.records("val") if "val" in plan.view.splits else ()
        _write(options, masks_of_recipe(plan, "train", options.step), target, val=val)
    else:
        _write(options, masks_of_recipe(plan, split, options.step), target)
    return 0


def _write(options: argparse.Namespace, masks: MaskSet, target: Path, *, val: Sequence[Record] = ()) -> None:
    shown = masks if options.images else replace(masks, images={})
    if options.to == TRAINER:
        write_masks(TRAINER, shown, lambda given, made: write_trainer(given, val, made), target, force=options.force)
    else:
        write_format(options.to, shown, target, force=options.force)


def _export_folder(options: argparse.Namespace) -> int:
    """Masks of a folder, which need no recipe."""
    if options.to in TARGETS:
        raise ConfigError(f"--to {options.to} takes the predictions of a recipe, not a folder. Name the recipe.")
    classes = None
    if options.data != BUILTIN:
        classes = DataView(data_section(options.data, options.root)["data"]).info.classes
    photos = Path(options.photos) if options.photos else None
    masks = masks_of_folder(Path(options.recipe), photos if options.images else None, classes)
    folder = Path(options.recipe).resolve()
    target = Path(options.output) if options.output else folder.with_name(f"{folder.name}_{options.to}")
    _write(options, masks, target)
    return 0


def _parser() -> argparse.ArgumentParser:
    known = "; ".join(f"{one.name}: {one.about}" for one in FORMATS.values())
    parser = argparse.ArgumentParser(
        prog="python -m dhr_lightning export",
        description="Write masks, or a model, in the format of an annotation tool or a trainer: those of a recipe "
        "that has run, or of a folder, such as `segment` makes. The class list of other folders is that of --data.",
        epilog=f"Formats. {known}; {TRAINER}: {ABOUT}; voc-server: the evaluation server of PASCAL VOC; onnx: the "
        "segmenter as a model that runs elsewhere (--output FILE); safetensors: its weights with a "
        "JSON card (--output FILE).",
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(KNOWN))
    parser.add_argument("--split", help="train (pseudo masks), val or test (predictions); default: all that are there, "
                        "for voc-server test")  # fmt: skip
    parser.add_argument("--step", help="step of the recipe whose masks are exported (default: the last of each split)")
    parser.add_argument("--photos", metavar="DIR", help="photos of a folder of masks, to copy them beside")
    parser.add_argument("--images", action=argparse.BooleanOptionalAction, default=True, help="copy the photos, too")
    parser.add_argument("--output", metavar="DIR", help="default: exports/DATASET/FORMAT in the workspace")
    parser.add_argument("--force", action="store_true", help="replace another export there")
    return parser
