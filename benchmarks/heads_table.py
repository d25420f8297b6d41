"""Do heads on a frozen backbone help MARS and DHR? Their masks of the training split beside those of raw layers.

    python benchmarks/heads_table.py --workspace bench_heads --photos VOC --weights FILE --limit 500
    python benchmarks/heads_table.py ... --backbone tu-tf_efficientnet_lite0 --layer stage5 --heads raw whitening stego

Masks, CAMs and supervised layers are the same in every row; only the USS features differ. Heads that train do so for a
hundred steps or so (`benchmarks/heads.yaml`), far fewer than published. The same command continues an interrupted run;
the table is `<workspace>/heads.md`, the figures `<workspace>/heads.json`.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ladder import Figures, judge, run_until, save, table

from dhr_lightning.pipeline.request import Request
from dhr_lightning.progress import configure_logging, exit_status

HERE = Path(__file__).parent
RAW, START = "raw", "masks they start from"
FITTED: Mapping[str, str] = {
    "principal axes": "principal_axes",
    "whitening": "whitening",
    "cluster code": "cluster_code",
}
TRAINED = ("stego", "cause", "leopart")
log = logging.getLogger("dhr_lightning")


def main() -> int:
    """Run every head; returns the exit status."""
    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    place = {"root": str(options.photos), "workspace": str(options.workspace.resolve())}
    limit = (f"--data.limit={options.limit}",) if options.limit else ()
    base = Request("frozen", "voc", **place, weights=str(options.weights), overrides=limit)
    results: dict[str, list[Figures]] = {}
    for head in options.heads:
        for step in ("mars", "dhr"):
            plan = run_until(request_of(base, head, step, options), step)
            if START not in results:
                results[START] = [judge(plan, "propagation", "train")]
            results[f"{step}, {head}"] = [judge(plan, step, "train")]
            save(options.workspace, "heads", results)
    log.info("%s", table(results))


def request_of(base: Request, head: str, step: str, options: argparse.Namespace) -> Request:
    """The recipe of one row."""
    if head == RAW:
        layer = f"--mars.taps=[{options.layer}]"
        return replace(base, recipe="frozen_mars", overrides=(*base.overrides, layer)) if step == "mars" else base
    recipe = str(HERE / "heads.yaml")
    words = (f"--head.backbone={options.backbone}",) if options.backbone else ()
    if head == "leopart" and options.channels:
        words = (*words, f"--head.dimension={options.channels}")
    if head in TRAINED:
        return replace(base, recipe=recipe, swaps={"head": head}, overrides=(*base.overrides, *words))
    return replace(base, recipe=recipe, overrides=(*base.overrides, *words, f"--head.head={FITTED[head]}"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for artifacts and results")
    parser.add_argument("--photos", type=Path, required=True, help="photos in the VOC layout")
    parser.add_argument("--weights", type=Path, required=True, help="weights of the frozen backbone")
    parser.add_argument("--limit", type=int, help="at most this many photos of each split")
    parser.add_argument("--backbone", help="name of the backbone that the weights belong to, as the heads take it")
    parser.add_argument("--channels", type=int, help="channels of the backbone, which Leopart's features keep")
    parser.add_argument("--layer", default="keys", help="layer of the backbone that `raw` means for MARS")
    known = (RAW, *FITTED, *TRAINED)
    parser.add_argument("--heads", nargs="+", choices=known, default=known, help="rows of the table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
