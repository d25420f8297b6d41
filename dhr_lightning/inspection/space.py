"""Disk space that the artifacts of a dataset will take, from the sizes of all its images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dhr_lightning.inspection.finding import Finding
from dhr_lightning.inspection.scan import Scan
from dhr_lightning.pipeline.plan import PlannedStep
from dhr_lightning.pipeline.space import ImageFacts, bytes_by_role, free_bytes
from dhr_lightning.progress import human

_NAMES = {"cam": "CAMs", "features": "features"}  # everything else is masks and predictions


def space_findings(scans: Sequence[Scan], steps: Sequence[PlannedStep], folder: Path) -> list[Finding]:
    """Compare the space that a recipe needs with what is free where `folder` is or will be.

    Args:
        scans: of all images; those that cannot be read count nothing.
        steps: of the recipe.
        folder: of the artifacts of this dataset.
    """
    needed = dict.fromkeys(("CAMs", "features", "masks"), 0)
    for role, size in bytes_by_role(steps, _facts(scans)).items():
        needed[_NAMES.get(role, "masks")] += size
    total, present = sum(needed.values()), folder_bytes(folder)
    free = free_bytes(folder)
    parts = ", ".join(f"{name} {human(size)}" for name, size in needed.items())
    text = (
        f"Artifacts of all steps will take about {human(total)}: {parts}; {human(present)} are there, {human(free)} "
        "free. Checkpoints come on top."
    )
    short = total - present > free
    advice = f"Free {human(total - present - free)} at {folder}, or give another --workspace." if short else ""
    return [Finding("problem" if short else "fact", "disk-space", text, 0, (), advice)]


def _facts(scans: Sequence[Scan]) -> dict[str, ImageFacts]:
    facts = {}
    for split in {scan.split for scan in scans}:
        rows = [scan for scan in scans if scan.split == split and scan.readable]
        sizes = np.array([scan.size for scan in rows], np.int64).reshape(-1, 2)
        tags = np.array([len(scan.record.tags) for scan in rows], np.int64)
        facts[split] = ImageFacts(sizes, tags, len(rows))
    return facts


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # a stage that runs at this moment renames its files
    return total
