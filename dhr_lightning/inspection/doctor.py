"""Examine a dataset: all findings, in one list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dhr_lightning.data.catalog import TAGGED_SPLITS, DatasetInfo, Record
from dhr_lightning.data.image_headers import IMAGE_SUFFIXES, unread_reason
from dhr_lightning.errors import DataError
from dhr_lightning.inspection.duplicates import duplicate_findings, id_findings
from dhr_lightning.inspection.files import image_findings, mask_findings
from dhr_lightning.inspection.finding import LEVELS, Finding, Level, finding
from dhr_lightning.inspection.scan import Scan, scan_records
from dhr_lightning.inspection.space import space_findings
from dhr_lightning.inspection.tags import (
    Counts,
    agreement_findings,
    balance_findings,
    class_counts,
    cooccurrence_findings,
    coverage_findings,
    tag_matrix,
)
from dhr_lightning.pipeline.plan import PlannedStep


@dataclass(frozen=True)
class Examination:
    """A dataset as it was found.

    Args:
        info: its catalog entry.
        root: its folder.
        records: images by split; splits that cannot be read are left out.
        scans: what each file holds.
        counts: images per foreground class `(T,)` of each split.
        findings: problems first, facts last.
    """

    info: DatasetInfo
    root: Path
    records: Mapping[str, Sequence[Record]]
    scans: Sequence[Scan]
    counts: Mapping[str, Counts]
    findings: Sequence[Finding]

    def of_level(self, level: Level) -> list[Finding]:
        """Findings of one level."""
        return [item for item in self.findings if item.level == level]


def examine(
    info: DatasetInfo,
    root: Path,
    *,
    artifacts: Path,
    steps: Sequence[PlannedStep] = (),
    untagged: str,
    workers: int | None = None,
) -> Examination:
    """Read the lists and tags of a dataset, decode every file, and collect what is wrong or worth knowing.

    Args:
        info: catalog entry.
        root: folder of the dataset; nothing in it is changed.
        artifacts: folder of its artifacts, for the disk space.
        steps: of the recipe that will write there.
        untagged: policy for images without tags, see `apply_untagged_policy`.
        workers: threads that decode; default: one per usable core, at most 8.

    Raises:
        DataError: if no split can be read.
    """
    records, findings = _read_splits(info, root)
    findings += id_findings(records) + _unlisted(records)
    scans = scan_records(records, workers=workers)
    findings += image_findings(scans) + mask_findings(scans, info.classes) + duplicate_findings(scans)
    findings += coverage_findings(records, info.classes, untagged=untagged)
    counts = class_counts({split: rows for split, rows in records.items() if split in TAGGED_SPLITS}, info.classes)
    if "train" in records:
        tags = tag_matrix(records["train"], info.classes)
        used = tags if untagged == "background" else tags[tags.any(1)]
        findings += balance_findings(counts, len(used), info.classes) + cooccurrence_findings(used, info.classes)
    findings += agreement_findings(scans, info.classes) + space_findings(scans, steps, artifacts)
    return Examination(info, root, records, scans, counts, sorted_findings(findings))


def sorted_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Problems first, facts last."""
    return sorted(findings, key=lambda item: LEVELS.index(item.level))


def _read_splits(info: DatasetInfo, root: Path) -> tuple[dict[str, list[Record]], list[Finding]]:
    records, errors = {}, {}
    for split in info.splits(root):
        try:
            records[split] = info.read(root, split, info.classes)
        except DataError as error:
            errors[split] = error
    if not records:
        raise errors["train"]
    items = [f"{split}: {error}" for split, error in errors.items()]
    return records, finding(
        "problem",
        "unreadable-split",
        items,
        "Splits that cannot be read, so that nothing else is said about them: {n}.",
        "Repair what the message names and run doctor again.",
    )


def _unlisted(records: Mapping[str, Sequence[Record]]) -> list[Finding]:
    listed = {record.image for rows in records.values() for record in rows}
    folders = sorted({path.parent for path in listed})
    extra = sorted(
        str(path)
        for folder in folders
        for path in folder.iterdir()
        if path.suffix.casefold() in IMAGE_SUFFIXES and not unread_reason(path) and path not in listed
    )
    unread = [
        f"{path} ({why})" for folder in folders for path in sorted(folder.iterdir()) if (why := unread_reason(path))
    ]
    return finding(
        "fact", "unlisted-image", extra, "Photos beside the listed ones that are in no split: {n}."
    ) + finding(
        "warning",
        "unread-kind",
        unread,
        "Files beside the photos whose kind is not read: {n}.",
        "Convert those that are photos of the dataset.",
    )
