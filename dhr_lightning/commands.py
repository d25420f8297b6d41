"""Commands of our own: run, init, prepare, doctor, import, status, gc, evaluate, export, report."""

import argparse
import inspect
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from jsonargparse import auto_cli

from dhr_lightning.artifacts.files import write_json
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.data.preparation.prepare import prepare_benchmark
from dhr_lightning.evaluation.folder import evaluate_folder, show_scores
from dhr_lightning.export.command import run_export
from dhr_lightning.importing.command import import_files
from dhr_lightning.inspection.command import run_doctor
from dhr_lightning.inspection.init import init_folder
from dhr_lightning.inspection.weights import run_weights
from dhr_lightning.pipeline.command import run
from dhr_lightning.pipeline.command import seal_command as seal
from dhr_lightning.pipeline.plan import make_plan
from dhr_lightning.pipeline.reports import report_folder, write_recipe_report
from dhr_lightning.pipeline.request import (
    BUILTIN,
    add_data_options,
    add_options,
    data_section,
    split_overrides,
    to_request,
)
from dhr_lightning.pipeline.status import collect_garbage, first_request, other_request, show_status
from dhr_lightning.progress import track
from dhr_lightning.provenance.views import DataView

__all__ = ["run", "seal"]
log = logging.getLogger("dhr_lightning")


def _run(function: Callable[..., int], arguments: Sequence[str], *, positional: bool = False) -> int:
    status: int = auto_cli(function, args=_spell_flags(function, arguments), as_positional=positional)
    return status


def _spell_flags(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """`--force` alone as `--force=true`: jsonargparse wants a value."""
    flags = {f"--{name}" for name, one in inspect.signature(function).parameters.items() if one.annotation is bool}
    return [
        f"{word}=true" if word in flags and after.lower() not in ("true", "false") else word
        for word, after in pairwise([*arguments, ""])
    ]


def init(arguments: Sequence[str]) -> int:
    """Write the configuration of a folder of photos."""
    return _run(init_folder, arguments, positional=True)


def import_(arguments: Sequence[str]) -> int:
    """Import what others made."""
    return _run(import_files, arguments, positional=True)


def prepare(arguments: Sequence[str]) -> int:
    """Make or check a dataset."""

    def prepare(data: str = BUILTIN, root: str | None = None, workspace: str = ".", download: bool = False) -> int:
        """Make the built-in dataset, or build what a benchmark needs, and check that every file can be used.

        Args:
            data: name of a dataset, a YAML file, or a folder of photos with tags.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
            download: fetch missing official files of a benchmark from their public addresses.
        """
        section = data_section(data, root, workspace)["data"]
        view, options = DataView(section), section.get("options") or {}
        if view.info.prepare is not None:
            view.info.prepare(view.root, options)
        prepare_benchmark(view.info.name, view.root, view.info.classes, options, download=download)
        records = {split: view.records(split) for split in view.splits}
        check_dataset(view.store.root / view.info.name, records, view.info.classes)
        for split, rows in records.items():
            tags = sum(len(record.tags) for record in rows) / max(len(rows), 1)
            masks = sum(record.gt_mask is not None for record in rows)
            log.info(
                "%s/%s: %d images, %.2f tags per image, %d ground-truth masks (%s)",
                view.info.name,
                split,
                len(rows),
                tags,
                masks,
                view.root,
            )
        return 0

    return _run(prepare, arguments)


def doctor(arguments: Sequence[str]) -> int:
    """Look at a dataset before any long work."""
    return run_doctor(arguments)


def status(arguments: Sequence[str]) -> int:
    """Show every artifact."""
    parser = _recipe_parser("status", "Show every artifact of the recipes that ran, or of one: fresh, stale (why), "
                            "partial or absent. Exit status 1 if any is stale, partial or damaged.")  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="read every file: damaged ones, changed ones, and "
                        "photos that were replaced; takes as long as reading them")  # fmt: skip
    words, overrides = split_overrides(arguments)
    options = parser.parse_args(words)
    return show_status(to_request(options, overrides), verify=options.verify)


def gc(arguments: Sequence[str]) -> int:
    """Remove what no recipe needs."""
    parser = _recipe_parser(
        "gc", "List artifacts and runs that no recipe needs that ran here, and remove them.", short=True
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument(
        "--forget", nargs="+", default=[], metavar="RECIPE", help="recipes that are not needed any more"
    )
    options = parser.parse_args(arguments)
    return collect_garbage(DataView(data_section(options.data, options.root, options.workspace)["data"]),
                           forget=options.forget, yes=options.yes)  # fmt: skip


def evaluate(arguments: Sequence[str]) -> int:
    """Score a folder of masks."""

    def evaluate(
        pred: str,
        data: str = BUILTIN,
        root: str | None = None,
        workspace: str = ".",
        split: str = "val",
        missing: str = "error",
        compat: str = "none",
        json: str | None = None,
    ) -> int:
        """Score a folder of palette or grey PNGs (<id>.png, class values) against the ground truth of a split.

        Args:
            pred: folder of masks; also relative to the workspace.
            data: name of a dataset, a YAML file, or a folder of photos with tags.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
            split: train or val; a test split has no ground truth.
            missing: error, or background to count a missing file as all background.
            compat: none, or dhr to leave out the images that the evaluator published with DHR leaves out.
            json: also write the figures to this file.
        """
        view = DataView(data_section(data, root, workspace)["data"])
        folder = Path(pred) if Path(pred).is_dir() else Path(workspace) / pred
        result = evaluate_folder(folder, view.info, view.root, split, missing=missing, compat=compat, progress=track)
        show_scores(result)
        if json:
            Path(json).parent.mkdir(parents=True, exist_ok=True)
            write_json(Path(json), result)
        return 0

    return _run(evaluate, arguments)


def weights(arguments: Sequence[str]) -> int:
    """List, fetch or register pretrained weights."""
    return run_weights(arguments)


def segment(arguments: Sequence[str]) -> int:
    """Predict new photos."""
    from dhr_lightning.predicting.command import run_segment  # imports torch, for which `status` must not wait

    return run_segment(arguments)


def export(arguments: Sequence[str]) -> int:
    """Hand masks over."""
    return run_export(arguments)


def report(arguments: Sequence[str]) -> int:
    """Write the report of one recipe, or of several side by side."""
    parser = _recipe_parser("report", "Write report.html (one file, works without a network) and report.json.")
    parser.add_argument("others", nargs="*", default=[], metavar="RECIPE",
                        help="more recipes to show beside the first: names, files, or those of `status`")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="folder of the report (default: reports/DATASET/RECIPE)")
    parser.add_argument("--images", type=int, default=8, help="pictured images per split (default: 8)")
    words, overrides = split_overrides(arguments)
    options = parser.parse_intermixed_args(words)
    request = to_request(options, overrides)
    plans = [make_plan(one) for one in (first_request(request), *(other_request(request, n) for n in options.others))]
    target = Path(options.output) if options.output else report_folder(plans[0])
    write_recipe_report(plans, target, images=options.images)
    return 0


def _recipe_parser(name: str, about: str, *, short: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m dhr_lightning {name}", description=about, allow_abbrev=False)
    if short:
        add_data_options(parser)
    else:
        add_options(parser)
    return parser
