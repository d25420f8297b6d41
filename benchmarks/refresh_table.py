"""When DHR masks are made anew: at every step or between epochs, all of them or a part; mIoU and cost.

    python benchmarks/refresh_table.py --workspace bench_refresh --seeds 0

Settings of the quick start, on the built-in data. All rows of a seed share CAMs, first masks, features and MARS masks.
"Plain" is the same fit on the first round's masks alone. The same command continues an interrupted run; the table is
`<workspace>/refresh.md`, the figures `<workspace>/refresh.json`.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

from ladder import judge, run_until
from methods_table import base_request

from dhr_lightning.artifacts.files import write_bytes, write_json
from dhr_lightning.pipeline.request import Request
from dhr_lightning.progress import configure_logging, exit_status

EPOCHS = 7
log = logging.getLogger("dhr_lightning")


def main() -> int:
    """Run every mode; returns the exit status."""
    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    rows: dict[str, list[Mapping[str, float | None]]] = {}
    for number in options.seeds:
        for label, request in modes(base_request(options, number)).items():
            plan = run_until(request, "dhr")
            train, val = judge(plan, "dhr", "train"), judge(plan, "dhr", "val")
            rows.setdefault(label, []).append(
                {"train": train["miou"], "vanished": train["vanished_tag_rate"], "val": val["miou"],
                 "seconds": plan["dhr"].seconds()}
            )  # fmt: skip
            write_json(options.workspace / "refresh.json", rows)
            write_bytes(options.workspace / "refresh.md", (table(rows) + "\n").encode())
    log.info("%s", table(rows))


def modes(base: Request) -> dict[str, Request]:
    """One request for each mode."""

    def between(every: int, parts: int = 1) -> Request:
        callback = f"[{{class_path: PseudoMaskRefresh, init_args: {{every: {every}, parts: {parts}}}}}]"
        return replace(base, overrides=(*base.overrides, f"--dhr.trainer.callbacks={callback}"))

    def online(refine: str) -> Request:
        overrides = (*base.overrides, f"--dhr.refine={refine}")
        return replace(base, swaps={**base.swaps, "dhr": "dhr_online"}, overrides=overrides)

    return {
        "plain: round 0 only": between(EPOCHS),
        "every 5 epochs": between(5),
        "every 2 epochs": between(2),
        "every epoch": between(1),
        "a third every epoch": between(1, parts=3),
        "every step, PAMR": online("pamr"),
        "every step, dense CRF": online("auto"),
    }


def table(rows: Mapping[str, list[Mapping[str, float | None]]]) -> str:
    """Markdown: one row for each mode, means over the seeds."""
    lines = ["| masks are made | mIoU of masks | vanished tags | mIoU on val | s | times plain |", "|---" * 6 + "|"]
    plain = mean(float(one["seconds"] or 0) for one in next(iter(rows.values())))
    for label, found in rows.items():
        cells = [f"{100 * mean(float(one[name] or 0) for one in found):.1f}" for name in ("train", "vanished", "val")]
        seconds = mean(float(one["seconds"] or 0) for one in found)
        lines.append(f"| {label} | {' | '.join(cells)} | {seconds:.0f} | {seconds / plain:.2f} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for data, artifacts and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="dataset and training seeds")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(photos=None, weights=None, val=160, overrides=())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
