"""Measure what every step of the method does to the masks, and to segmenters trained on them.

    python benchmarks/ladder.py --workspace bench --seeds 0 1 2
    python benchmarks/ladder.py --workspace bench --rows ablation --skip-segmenters
    python benchmarks/ladder.py --workspace bench_photos --rows ablation --skip-segmenters --photos VOC --weights FILE

Without photos (PASCAL VOC layout, ImageNet weights of torchvision's MobileNetV2) it runs on the built-in data.

A seed draws its own dataset and trains its own networks in `<workspace>/seed_K`. Results so far are always in
`<workspace>/<rows>.json` and `<workspace>/<rows>.md`; the same command continues an interrupted run.
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
    from ladder_table import SETS

    workspace = options.workspace.resolve()
    settings = {key: getattr(options, key) for key in ("train", "val", "images", "fast")}
    report = Report(workspace, options.rows, settings)
    for seed in options.seeds:
        bench = Bench(workspace / f"seed_{seed}", seed, **settings, photos=options.photos, weights=options.weights)
        _run_seed(bench, report, SETS[options.rows], None if options.skip_segmenters else options.also)
        log.info("%s", report.seed_tables(seed))
    log.info("%s\nResults: %s", report.mean_tables(), report.path)


def _run_seed(bench, report, slugs: tuple[str, ...], also: list[str] | None) -> None:
    """Stages, mask ladder and (unless `also` is None) segmenters of one seed; the report is saved after each part."""
    from ladder_figures import Judge
    from ladder_pass import compute_rows
    from ladder_segmenters import choose_segmenters, train_segmenter

    for name, steps in (("stage1_cam", ("cam",)), ("stage2_uss", ("uss",)), ("stage3_dhr", ("mars",))):
        if steps != ("mars",) or bench.start == "mars_mask":
            bench.run(name, steps)
    judge = Judge(bench)
    report.update(bench.seed, seconds=bench.stage_seconds(), rows=judge.stage_rows())
    compute_rows(bench, slugs)
    rows = judge.all_rows(slugs)
    report.update(bench.seed, rows=rows)
    if also is None:
        return
    results = {}
    for name in choose_segmenters(also):
        results[name] = train_segmenter(bench, judge, name)
        report.update(bench.seed, segmenters=results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for data, artifacts and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="dataset and training seeds")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=160, help="validation images")
    parser.add_argument("--rows", choices=("ladder", "ablation"), default="ladder", help="which table")
    parser.add_argument("--photos", type=Path, help="photos in the VOC layout, instead of the built-in data")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of MobileNetV2, with --photos")
    parser.add_argument("--images", type=int, help="judge masks on the first N training images only")
    parser.add_argument("--skip-segmenters", action="store_true", help="masks only")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="ROW", help="train segmenters on these rows too (mars_seed)"
    )
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.photos is None) != (options.weights is None):
        parser.error("--photos and --weights go together.")
    if options.images and not options.skip_segmenters:
        parser.error("Segmenters train on the masks of all images, but --images makes a part. Add --skip-segmenters.")
    return options


if __name__ == "__main__":
    sys.exit(main())
