"""Look at every file of a dataset once, before any long work."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dhr_lightning.artifacts.checksums import checksum
from dhr_lightning.artifacts.files import read_json, write_json
from dhr_lightning.artifacts.manifest import digest_config
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import TruthAgreement, check_record
from dhr_lightning.progress import track

MEMORY = "checked.json"


def check_dataset(folder: Path, records: Mapping[str, Sequence[Record]], classes: ClassSet) -> None:
    """Decode every image and mask and check them against the class list; files seen before are not read again.

    Args:
        folder: where the list of checked files is kept (`checked.json`).
        records: images by split.
        classes: class list.

    Raises:
        DataError: for the first image that cannot be read.
        MaskError: for the first mask of another size, with unknown values or expanded colours; if no mask of a split
            shows a class although tags name some.
    """
    memory = folder / MEMORY
    seen = read_json(memory) if memory.is_file() else {}
    stamps = {f"{split}/{record.id}": _stamp(record, classes) for split, rows in records.items() for record in rows}
    sums = {name: found[1] for name, found in seen.items() if found[0] == stamps.get(name)}
    pairs = [(split, record) for split, rows in records.items() for record in rows]
    fresh = [(split, record) for split, record in pairs if f"{split}/{record.id}" not in sums]
    agreement = {split: TruthAgreement() for split in records}
    for split, record in track(fresh, "checking files"):
        values = check_record(record, classes)
        if values is not None:
            agreement[split].add(record.tags, values, offset=classes.offset)
        sums[f"{split}/{record.id}"] = checksum(record.image)
    for split, rows in records.items():
        if classes.has_background and sum(one == split for one, _ in fresh) == len(rows):  # else it is not all of it
            agreement[split].check(split=split, tags=classes.num_tags, ignore_index=classes.ignore_index)
    if fresh:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(memory, {name: [stamp, sums[name]] for name, stamp in stamps.items()})


def photos_digest(folder: Path, split: str, ids: Sequence[str]) -> str | None:
    """Digest of the photos of a split as they were when they were last checked; `None` where they were not.

    Args:
        folder: as in `check_dataset`.
        split: the split.
        ids: its images.
    """
    memory = folder / MEMORY
    seen = read_json(memory) if memory.is_file() else {}
    sums = [seen.get(f"{split}/{one}", (None, None))[1] for one in ids]
    return digest_config({"photos": sums}) if sums and None not in sums else None


def changed_photos(folder: Path, split: str, records: Sequence[Record]) -> list[Path]:
    """Photos whose bytes are not those that were last checked, whatever their size and time say."""
    memory = folder / MEMORY
    seen = read_json(memory) if memory.is_file() else {}
    kept = {record.image: seen.get(f"{split}/{record.id}", (None, None))[1] for record in records}
    return [path for path, sum_ in kept.items() if sum_ is not None and (not path.is_file() or checksum(path) != sum_)]


def _stamp(record: Record, classes: ClassSet) -> str:
    files = [path.stat() if path else None for path in (record.image, record.gt_mask)]
    return digest_config(
        {
            "files": [[s.st_size, s.st_mtime_ns] if s else None for s in files],
            "names": list(classes.names),
            "values": list(record.gt_values or ()),
        }
    )[:16]
