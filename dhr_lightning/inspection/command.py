"""The command `doctor`: look at a dataset before any long work, and say what is wrong with it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from dhr_lightning.artifacts.files import write_json
from dhr_lightning.errors import ConfigError
from dhr_lightning.inspection.doctor import Examination, examine, sorted_findings
from dhr_lightning.inspection.finding import LEVELS, Finding, Level
from dhr_lightning.inspection.picture import draw_sheet, save_sheet
from dhr_lightning.inspection.trial import trial_findings
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
from dhr_lightning.pipeline.request import BUILTIN, Request, data_section
from dhr_lightning.progress import duration
from dhr_lightning.provenance.views import DataView

log = logging.getLogger("dhr_lightning")
_HEADINGS: Mapping[Level, tuple[str, str]] = {
    "problem": ("problem", "problems"),
    "warning": ("warning", "warnings"),
    "fact": ("fact", "facts"),
}


def run_doctor(arguments: Sequence[str]) -> int:
    """Parse the command line and examine a dataset.

    Returns:
        0 if there is no problem, 1 if there is one.

    Raises:
        DHRError: if the dataset cannot be examined at all.
    """
    status: int = auto_cli(doctor, args=list(arguments), as_positional=False)
    return status


def doctor(
    data: str = BUILTIN,
    root: str | None = None,
    workspace: str = ".",
    json: str | None = None,
    picture: str | None = None,
    show: int = 5,
    workers: int | None = None,
) -> int:
    """Look at every file and tag of a dataset. Exit status 0 without problems, 1 with problems, 2 if it cannot run.

    Args:
        data: name of a dataset, a YAML file, or a folder of photos with tags.
        root: folder of the dataset; default: the one in its configuration.
        workspace: folder that holds artifacts/.
        json: also write all findings to this file, with every file that they concern.
        picture: also draw photos with tags and a class histogram into this PNG file.
        show: files shown per finding; the JSON file has all.
        workers: threads that decode; default: one per core, at most 8.
    """
    if show < 0 or (workers is not None and workers < 1):
        raise ConfigError(f"Expected --show >= 0 and --workers >= 1, but got {show} and {workers}.")
    settings = data_section(data, root, workspace)
    view = DataView(settings["data"])
    info, folder, store = view.info, view.root, view.store
    start = time.monotonic()
    plan = make_plan(Request(data=data, root=root, workspace=workspace))
    result = examine(
        info,
        folder,
        artifacts=store.root / info.name,
        steps=plan.steps,
        untagged=settings["data"].get("untagged", "drop"),
        workers=workers,
    )
    result = replace(result, findings=sorted_findings([*result.findings, *_trial(plan, result)]))
    log.info("%s", describe(result, show=show))
    log.info("\nLooked at %d images in %s.", len(result.scans), duration(time.monotonic() - start))
    _write(result, json, picture)
    return int(bool(result.of_level("problem")))


def _trial(plan: RecipePlan, result: Examination) -> list[Finding]:
    """Build the recipe, unless what is known already would stop it."""
    records = result.records.get("train")
    stopped = records is None or result.of_level("problem")
    return [] if stopped or records is None else trial_findings(plan, records, result.info.classes)


def _write(result: Examination, json: str | None, picture: str | None) -> None:
    if json:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(json), summary(result))
        log.info("Findings: %s", json)
    if picture:
        title = f"{result.info.name}: " + ", ".join(f"{len(rows)} {name}" for name, rows in result.records.items())
        save_sheet(draw_sheet(result.scans, result.counts, result.info.classes, title=title), Path(picture))
        log.info("Picture: %s", picture)


def describe(result: Examination, *, show: int) -> str:
    """All findings as text: problems, warnings, facts.

    Args:
        result: the examination.
        show: files shown per finding, >= 0.
    """
    lines = [f"{result.info.name}: {result.root}"]
    for level in LEVELS:
        found = result.of_level(level)
        one, several = _HEADINGS[level]
        lines += ["", f"{len(found) or 'No'} {one if len(found) == 1 else several}"]
        for item in found:
            lines += _describe_finding(item, show)
    return "\n".join(lines)


def _describe_finding(item: Finding, show: int) -> list[str]:
    lines = [f"  {item.text}"]
    # Facts list short entries, such as names of classes: one line reads better.
    if item.level == "fact" and item.items:
        more = f", ... ({len(item.items) - show} more)" if len(item.items) > show else ""
        lines.append(f"      {', '.join(item.items[:show])}{more}" if show else f"      {len(item.items)}")
    elif item.items:
        lines += [f"      {entry}" for entry in item.items[:show]]
        lines += [f"      ... {len(item.items) - show} more"] if len(item.items) > show else []
    return [*lines, *([f"      -> {item.advice}"] if item.advice else [])]


def summary(result: Examination) -> dict[str, Any]:
    """What `--json` writes: `schema`, `dataset`, `root`, `status`, images by split, images per class, findings."""
    names = result.info.classes.tag_names
    return {
        "schema": 1,
        "dataset": result.info.name,
        "root": str(result.root),
        "status": "problems" if result.of_level("problem") else "ok",
        "images": {split: len(rows) for split, rows in result.records.items()},
        "classes": {
            name: {split: int(counts[tag]) for split, counts in result.counts.items()} for tag, name in enumerate(names)
        },
        "findings": [item.to_json() for item in result.findings],
    }
