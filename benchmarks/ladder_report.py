"""`<rows>.json` and `<rows>.md`: everything measured so far, and the mean over seeds."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.files import read_json, write_bytes, write_json

MASK_COLUMNS = {
    "miou": "mIoU",
    "frequent": "frequent classes",
    "vanished": "vanished tags",
    "vanished_adjacent": "adjacent",
    "rails_as_train": "rails as train",
    "head": "head IoU",
    "tail": "tail IoU",
    "background": "background IoU",
    "seconds_per_image": "s/image",
}
SEGMENTER_COLUMNS = {
    "miou": "val mIoU",
    "frequent": "frequent classes",
    "gap_closed": "gap closed",
    "head": "head IoU",
    "middle": "middle IoU",
    "tail": "tail IoU",
    "vanished_adjacent": "adjacent vanished",
    "rails_as_train": "rails as train",
}
NOTES = """\
Shares are in %. Vanished: pairs of image and tag whose class keeps less than a tenth of its true pixels; adjacent: only
those next to their large neighbour. The CRF is the weak one of the seeds unless a row says strong. Seconds are those of
the row's own step as if it ran alone (base: with its CAM; rows after base or mars: without making base or mars), on a
machine that may have been busy. Frequent classes: background and those with 90 training photos or more. Gap closed:
(mIoU - base) / (truth - base).
"""
Table = dict[str, dict[str, Any]]


class Report:
    """Results of all seeds, on disk after every change.

    Args:
        workspace: folder of the files.
        name: their stem, the name of the set of rows.
        settings: what the results depend on; results of other settings are dropped.
    """

    def __init__(self, workspace: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.path, self._json = workspace / f"{name}.md", workspace / f"{name}.json"
        found = read_json(self._json) if self._json.is_file() else {}
        self._seeds = found.get("seeds", {}) if found.get("settings") == dict(settings) else {}
        self._settings = dict(settings)

    def update(self, seed: int, **parts: Mapping[str, Any]) -> None:
        """Replace parts of one seed and save; a part of which only less is known now stays."""
        entry = self._seeds.setdefault(str(seed), {})
        for name, part in parts.items():
            old = entry.get(name, {})
            entry[name] = old if all(old.get(key) == value for key, value in part.items()) else dict(part)
        self._save()

    def seed_tables(self, seed: int) -> str:
        """Tables of one seed, in Markdown."""
        entry = self._seeds[str(seed)]
        return _tables(f"Seed {seed}", entry.get("rows", {}), _with_gap(entry.get("segmenters", {})))

    def mean_tables(self) -> str:
        """Tables of the mean over seeds with the range, in Markdown."""
        rows, segmenters = (self._mean(part) for part in ("rows", "segmenters"))
        return _tables(f"Mean over seeds {', '.join(sorted(self._seeds, key=int))} (min..max)", rows, segmenters)

    def _mean(self, part: str) -> Table:
        tables = [entry[part] for entry in self._seeds.values() if entry.get(part)]
        if part == "segmenters":
            tables = [_with_gap(table) for table in tables]
        slugs = dict.fromkeys(slug for table in sorted(tables, key=len, reverse=True) for slug in table)
        return {slug: _mean_row([table[slug] for table in tables if slug in table], of=len(tables)) for slug in slugs}

    def _save(self) -> None:
        self._json.parent.mkdir(parents=True, exist_ok=True)
        mean = {part: self._mean(part) for part in ("rows", "segmenters")}
        write_json(self._json, {"schema": 1, "settings": self._settings, "seeds": self._seeds, "mean": mean})
        command = f"`python {' '.join(sys.argv)}`"
        seeds = [self.seed_tables(int(seed)) for seed in sorted(self._seeds, key=int)]
        text = "\n".join([f"# {self.path.stem.capitalize()}\n", command + "\n", NOTES, self.mean_tables(), *seeds])
        write_bytes(self.path, text.encode())


def _with_gap(segmenters: Table) -> Table:
    """Add the share of the distance from `base` to `truth` that each segmenter covers."""
    low, high = (segmenters.get(name, {}).get("miou") for name in ("base", "truth"))
    if low is None or high is None or low == high:
        return segmenters
    return {name: {**row, "gap_closed": (row["miou"] - low) / (high - low)} for name, row in segmenters.items()}


def _mean_row(rows: Sequence[Mapping[str, Any]], *, of: int) -> dict[str, Any]:
    """Mean, minimum, maximum and number of seeds of every figure; the label tells if some of the `of` seeds lack it."""
    label = rows[0]["label"]
    result: dict[str, Any] = {"label": label if len(rows) == of else f"{label} ({len(rows)} of {of} seeds)"}
    for name in dict.fromkeys((*MASK_COLUMNS, *SEGMENTER_COLUMNS)):
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            spread = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
            result[name] = {**spread, "seeds": len(values)}
    return result


def _tables(title: str, rows: Table, segmenters: Table) -> str:
    parts = [f"## {title}\n"]
    if rows:
        parts += ["Masks of the training images\n", _table(rows, MASK_COLUMNS)]
    if segmenters:
        parts += ["Segmenters by the masks they were trained on\n", _table(segmenters, SEGMENTER_COLUMNS)]
    return "\n".join(parts)


def _table(rows: Table, columns: Mapping[str, str]) -> str:
    columns = {name: title for name, title in columns.items() if any(_cell(row, name) for row in rows.values())}
    body = [[row["label"], *(_cell(row, name) for name in columns)] for row in rows.values()]
    lines = [["masks", *columns.values()], *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, show = row.get(name), _seconds if name == "seconds_per_image" else _percent
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        return show(value)
    text = show(value["mean"])
    return f"{text} ({show(value['min'])}..{show(value['max'])})" if value["seeds"] > 1 else text


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.3f}"
