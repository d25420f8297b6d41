"""Every seed with every propagation: masks of the training split beside ground truth, and the seconds of each step.

    python benchmarks/methods_table.py --workspace bench_methods --seeds 0 1 2
    python benchmarks/methods_table.py --workspace bench_methods --train 400 --seeds 2 --further
    python benchmarks/methods_table.py --workspace bench_photos --photos VOC --weights FILE --seeds 0 --data.limit=300

Photos (PASCAL VOC layout) go through the recipe `photos`, with ImageNet weights of torchvision's MobileNetV2; without
them it runs on the built-in data with the settings of the quick start. Other arguments, `--STEP.a.b=value`, go to the
recipe. A seed draws its own dataset and trains its own networks, in `<workspace>/seed_K`. The same
command continues an interrupted run; the table is `<workspace>/methods.md`, the figures `<workspace>/methods.json`.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from ladder import judge, run_until

from dhr_lightning.artifacts.files import write_bytes, write_json
from dhr_lightning.pipeline.request import Request
from dhr_lightning.progress import configure_logging, exit_status

SEEDS, PROPAGATIONS = ("cam", "seam", "sfc", "advcam"), ("crf", "pamr", "psa", "irn")
COLUMNS = {"miou": "mIoU", "vanished_tag_rate": "vanished tags", "mboundary_iou": "boundary IoU",
           "head_miou": "head IoU", "tail_miou": "tail IoU", "rails": "rails as train", "seconds": "s"}  # fmt: skip
log = logging.getLogger("dhr_lightning")
Figures = Mapping[str, float | None]
# the quick start trains `cam` on smaller crops, and for fewer epochs
SAME_TRAINING = ("--cam.data.crop_size=128", "--cam.data.scale=[0.8, 1.3]", "--cam.trainer.max_epochs=28")


def main() -> int:
    """Run every pair; returns the exit status."""
    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    results: dict[str, list[Figures]] = {}
    for number in options.seeds:
        base = base_request(options, number)
        for seed, propagation in itertools.product(options.cams, options.propagations):
            request = replace(base, swaps={"cam": seed, "propagation": propagation})
            steps = {"cam": seed, "propagation": f"{seed} + {propagation}"}
            if options.further:
                request = replace(request, swaps={**request.swaps, "dhr": "rebalance"})
                steps |= {"mars": f"{seed} + {propagation} + mars", "dhr": f"{seed} + {propagation} + mars + dhr"}
            plan = run_until(request, list(steps)[-1])
            for step, label in steps.items():
                if step == "cam" and propagation != options.propagations[0]:
                    continue
                figures = {**judge(plan, step, "train"), "seconds": plan[step].seconds()}
                results.setdefault(label, []).append(figures)
            save(options.workspace, results)
    log.info("%s", table(results))


def base_request(options: argparse.Namespace, number: int) -> Request:
    """The recipe on the data of a seed."""
    workspace = options.workspace.resolve() / f"seed_{number}"
    seeds = (f"--seed_everything={number}", f"--data.seed={number}", *options.overrides)
    if options.photos:
        place = {"root": str(options.photos), "workspace": str(workspace)}
        return Request("photos", "voc", **place, weights=str(options.weights), overrides=seeds)
    data = f"--data.options={{seed: {number}, train: {options.train}, val: {options.val}}}"
    root, overlays = str(workspace / "data" / "microworld"), ("debug.yaml",) if options.fast else ()
    overrides = (data, *(() if options.fast else SAME_TRAINING), *seeds)
    return Request("quickstart", root=root, workspace=str(workspace), overlays=overlays, overrides=overrides)


def table(results: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: one row for each pair, mean over the seeds (least..largest), in percent but for the seconds."""
    further = any(label.endswith("+ mars") for label in results)
    used = {name: title for name, title in COLUMNS.items() if name != "rails" or further}  # which MARS is there to cut
    lines = ["| masks | " + " | ".join(used.values()) + " |", "|---" * (len(used) + 1) + "|"]
    for label, rows in results.items():
        cells = [_cell(name, [one[name] for one in rows if one.get(name) is not None]) for name in used]  # type: ignore[misc]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    factor, digits = (1, 0) if name == "seconds" else (100, 1)
    spread = f" ({factor * min(values):.{digits}f}..{factor * max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{factor * mean(values):.{digits}f}{spread}"


def save(workspace: Path, results: Mapping[str, Sequence[Figures]]) -> None:
    """Keep what is there so far."""
    workspace.mkdir(parents=True, exist_ok=True)
    write_json(workspace / "methods.json", {label: [dict(one) for one in rows] for label, rows in results.items()})
    write_bytes(workspace / "methods.md", (table(results) + "\n").encode())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for data, artifacts and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="dataset and training seeds")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--cams", nargs="+", default=SEEDS, help="methods of the step cam")
    parser.add_argument("--propagations", nargs="+", default=PROPAGATIONS, help="methods of the step propagation")
    parser.add_argument("--photos", type=Path, help="photos in the VOC layout, instead of the built-in data")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of MobileNetV2, with --photos")
    parser.add_argument("--further", action="store_true", help="MARS and one pass of DHR behind each pair, too")
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(val=16)
    options, overrides = parser.parse_known_args()
    options.overrides = overrides
    if (options.photos is None) != (options.weights is None):
        parser.error("--photos and --weights go together.")
    if options.further and options.photos:
        parser.error("--further is for the built-in data: the recipe photos has no MARS.")
    return options


if __name__ == "__main__":
    sys.exit(main())
