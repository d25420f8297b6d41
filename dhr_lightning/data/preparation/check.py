"""Look at every file of a dataset once, before any long work."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import check_record
from dhr_lightning.progress import track


def check_dataset(folder: Path, records: Mapping[str, Sequence[Record]], classes: ClassSet) -> None:
    """Decode every image and mask and check them against the class list; files seen before are not read again.

    Args:
        folder: where the list of checked files is kept (`checked.json`).
        records: images by split.
        classes: class list.

    Raises:
        DataError: for the first image that cannot be read.
        MaskError: for the first mask of another size, with unknown values or expanded colours.
    """
    memory = folder / "checked.json"
    seen = read_json(memory) if memory.is_file() else {}
    stamps = {f"{split}/{record.id}": _stamp(record, classes) for split, rows in records.items() for record in rows}
    fresh = [
        record for split, rows in records.items() for record in rows
        if seen.get(f"{split}/{record.id}") != stamps[f"{split}/{record.id}"]
    ]  # fmt: skip
    for record in track(fresh, "checking files"):
        check_record(record, classes)
    if fresh:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(memory, stamps)


def _stamp(record: Record, classes: ClassSet) -> str:
    files = [path.stat() if path else None for path in (record.image, record.gt_mask)]
    return digest_config(
        {"files": [[s.st_size, s.st_mtime_ns] if s else None for s in files], "names": list(classes.names)}
    )[:16]
