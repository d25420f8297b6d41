"""One table of a run on photos: mIoU over the frequent classes and over all, lost tags and time of every step.

    python benchmarks/real_table.py --data VOC --output reports/voc/table.md

It reads `reports/voc/photos/report.json`, which `make real` writes.
"""

import argparse
from pathlib import Path
from typing import Any

from frequent import FREQUENT, frequent_miou, frequent_names

from dhr_lightning.artifacts.files import read_json, write_bytes
from dhr_lightning.data.registry import get_dataset
from dhr_lightning.evaluation.truth import DatasetTruth, TruthFacts, resolve_truth


def main() -> None:
    """Print the table, and save it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photos in the VOC layout")
    parser.add_argument("--report", type=Path, default=Path("reports/voc/photos/report.json"))
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    facts = resolve_truth(DatasetTruth(get_dataset("voc"), options.data))
    text = table(read_json(options.report), facts)
    print(text)
    if options.output:
        write_bytes(options.output, text.encode())


def table(report: dict[str, Any], facts: TruthFacts) -> str:
    """Markdown: one row per kind of mask, shares in percent, then the seconds of the steps."""
    names = frequent_names(facts)
    lines = [
        f"Frequent: background and the {len(names)} classes with {FREQUENT} training photos or more "
        f"({', '.join(names)}).",
        "",
        "| masks | images | mIoU, frequent | mIoU, all | background | vanished tags | tags without a pixel |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, figures in report["metrics"].items():
        iou = figures["iou"]
        cells = (
            frequent_miou(iou, names),
            figures["miou"],
            iou["background"],
            figures["vanished_tag_rate"],
            figures["missing_tag_rate"],
        )
        row = " | ".join("" if cell is None else f"{100 * cell:.1f}" for cell in cells)
        lines.append(f"| {key} | {figures['images']} | {row} |")
    seconds = ", ".join(f"{step} {value:.0f} s" for step, value in report["seconds"].items())
    return "\n".join((*lines, "", f"{seconds}; {sum(report['seconds'].values()) / 60:.0f} min in all.", ""))


if __name__ == "__main__":
    main()
