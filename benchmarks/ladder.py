"""Measure what every step of the method does to the masks, and to segmenters trained on them, on `microworld`.

    python benchmarks/ladder.py --workspace bench --seeds 0 1 2

A seed draws its own dataset and trains its own networks in `<workspace>/seed_K`. Results so far are always in
`<workspace>/ladder.json` and `<workspace>/ladder.md`; the same command continues an interrupted run.
"""

import argparse
import logging
import sys
from pathlib import Path

# Processes of the dense CRF import this file again, so torch must not be imported before `main`.
log = logging.getLogger("dhr_lightning")


def main() -> int:
    """Run every seed; returns the exit status."""
    from dhr_lightning.progress import configure_logging, exit_status

    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from ladder_report import Report
    from ladder_setup import Bench

    workspace = options.workspace.resolve()
    settings = {key: getattr(options, key) for key in ("train", "val", "images", "fast")}
    report = Report(workspace, settings)
    for seed in options.seeds:
        bench = Bench(workspace / f"seed_{seed}", seed, options.train, options.val, options.images, options.fast)
        _run_seed(bench, report, None if options.skip_segmenters else options.also)
        log.info("%s", report.seed_tables(seed))
    log.info("%s\nResults: %s", report.mean_tables(), report.path)


def _run_seed(bench, report, also: list[str] | None) -> None:
    """Stages, mask ladder and (unless `also` is None) segmenters of one seed; the report is saved after each part."""
    from ladder_figures import Judge
    from ladder_pass import compute_rows
    from ladder_segmenters import choose_segmenters, train_segmenter

    for name, steps in (("stage1_cam", ("cam",)), ("stage2_uss", ("uss",)), ("stage3_dhr", ("mars",))):
        bench.run(name, steps)
    judge = Judge(bench)
    report.update(bench.seed, seconds=bench.stage_seconds(), rows=judge.stage_rows())
    compute_rows(bench)
    rows = judge.all_rows()
    report.update(bench.seed, rows=rows)
    if also is None:
        return
    results = {}
    for name in choose_segmenters(rows, also):
        results[name] = train_segmenter(bench, judge, name)
        report.update(bench.seed, segmenters=results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for data, artifacts and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="dataset and training seeds")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=160, help="validation images")
    parser.add_argument("--images", type=int, help="judge masks on the first N training images only")
    parser.add_argument("--skip-segmenters", action="store_true", help="masks only")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="ROW", help="train segmenters on these rows too (mars_seed)"
    )
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images and not options.skip_segmenters:
        parser.error("Segmenters train on the masks of all images, but --images makes a part. Add --skip-segmenters.")
    return options


if __name__ == "__main__":
    sys.exit(main())
