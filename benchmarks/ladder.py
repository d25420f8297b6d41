"""Measure what every step of the method does to the masks, and to segmenters trained on them.

    python benchmarks/ladder.py --workspace bench --seeds 0 1 2
    python benchmarks/ladder.py --workspace bench --rows ablation --skip-segmenters
    python benchmarks/ladder.py --workspace bench_photos --rows ablation --skip-segmenters --photos VOC --weights FILE

Without photos (PASCAL VOC layout, ImageNet weights of torchvision's MobileNetV2) it runs on the built-in data.

Each row is the recipe `ladder.yaml` (on photos with the settings of `photos`) with other settings of its mask step, so
all rows share the fits before it. A seed draws its own dataset and trains its own networks, in `<workspace>/seed_K`.
The same command continues an interrupted run; results are in `<workspace>/<rows>.md` and `<workspace>/<rows>.json`.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from frequent import frequent_miou, frequent_names
from ladder_rows import ROWS, SETS, Row

from dhr_lightning.artifacts.files import write_bytes, write_json
from dhr_lightning.pipeline.command import prepared_plan
from dhr_lightning.pipeline.plan import RecipePlan
from dhr_lightning.pipeline.reports import entries_of
from dhr_lightning.pipeline.request import Request
from dhr_lightning.pipeline.runner import run_plan
from dhr_lightning.progress import configure_logging, exit_status

HERE = Path(__file__).resolve().parent
SEGMENTERS = ("on_base", "on_mars", "on_dhr", "on_truth", "recursive")
COLUMNS = {
    "miou": "mIoU", "frequent": "mIoU, frequent", "vanished_tag_rate": "vanished tags",
    "vanished_adjacent_rate": "adjacent", "rails": "rails as train", "head_miou": "head IoU", "tail_miou": "tail IoU",
}  # fmt: skip
log = logging.getLogger("dhr_lightning")
Figures = Mapping[str, float | None]


def main() -> int:
    """Run every seed; returns the exit status."""
    options = _parse()
    configure_logging()
    return exit_status(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    results: dict[str, list[Figures]] = {}
    for seed in options.seeds:
        for label, figures in seed_rows(options, seed):
            results.setdefault(label, []).append(figures)
            save(options.workspace, options.rows, results)
    log.info("%s", table(results))


def seed_rows(options: argparse.Namespace, seed: int) -> Any:
    """Yield label and figures of every row of one seed."""
    base = base_request(options, seed)
    plan = run_until(base, "dhr")
    for step, label in (("cam", "cam"), ("propagation", "base"), ("mars", "mars")):
        if any(one.name == step for one in plan.steps):
            yield label, judge(plan, step, "train")
    for slug in SETS[options.rows]:
        row = ROWS[slug]
        yield row.label, judge(run_until(changed(base, row), "dhr"), "dhr", "train")
    for step in () if options.skip_segmenters else SEGMENTERS:
        yield f"segmenter {step} (val)", judge(run_until(base, step), step, "val")


def base_request(options: argparse.Namespace, seed: int) -> Request:
    """The recipe as it is shipped, on the data of a seed."""
    workspace = options.workspace.resolve() / f"seed_{seed}"
    seeds = [f"--seed_everything={seed}", f"--data.seed={seed}"]
    if options.photos:
        weights = str(options.weights) if options.weights else None
        place = {"root": str(options.photos), "workspace": str(workspace)}
        return Request("photos", "voc", **place, swaps={"dhr": "rebalance"}, weights=weights, overrides=tuple(seeds))
    sizes = f"{{seed: {seed}, train: {options.train}, val: {options.val}}}"
    root = str(workspace / "data" / "microworld")
    overlays, overrides = ("debug.yaml",) if options.fast else (), (*seeds, f"--data.options={sizes}")
    recipe = str(HERE / "ladder.yaml")
    return Request(recipe, root=root, workspace=str(workspace), overlays=overlays, overrides=overrides)


def changed(base: Request, row: Row) -> Request:
    """The request of a row."""
    settings = [f"--dhr.rebalance.{name}={str(value).lower()}" for name, value in row.changes.items()]
    if not row.strong:
        plan = prepared_plan(base)
        weak = plan["dhr"].identity.arguments.get("crf_seed") or {}  # type: ignore[union-attr]
        settings += [f"--dhr.crf_final={dict(weak)}"]
    drops = base.drops if row.mars or base.recipe == "photos" else (*base.drops, "mars")
    return replace(base, drops=drops, overrides=(*base.overrides, *settings))


def run_until(request: Request, step: str) -> RecipePlan:
    """Bring a step of a recipe, and what it needs, up to date."""
    plan = prepared_plan(replace(request, outputs=(step,)))
    run_plan(plan, plan.steps, title=f"ladder {step}")
    return plan


def judge(plan: RecipePlan, step: str, split: str) -> Figures:
    """Figures of a step's masks, counted by the code that makes the report."""
    from dhr_lightning.evaluation.counting import evaluate_split
    from dhr_lightning.evaluation.figures import all_figures
    from dhr_lightning.evaluation.kinds import find_kinds
    from dhr_lightning.evaluation.truth import DatasetTruth, resolve_truth

    truth = DatasetTruth(plan.view.info, plan.view.root)
    facts = resolve_truth(truth)
    entries = [one for one in entries_of([plan]) if one.split == split]
    kinds, _ = find_kinds(plan.view.store, entries, {split: truth.ids(split)}, splits=[split])
    (kind,) = [one for one in kinds if one.step == step][-1:]
    figures = all_figures([evaluate_split(plan.view.store, truth, facts, [kind])], facts)[kind.key]
    names = frequent_names(facts)
    return {
        **{name: figures[name] for name in (*COLUMNS, "mboundary_iou") if name in figures},  # type: ignore[literal-required]
        "frequent": frequent_miou(figures["iou"], names) if names and "background" in figures["iou"] else None,
        "rails": figures["background_rates"].get("rails->train"),
    }


def table(results: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: one row for each label, mean over the seeds (least..largest), in percent."""
    used = [name for name in COLUMNS if any(one[name] is not None for rows in results.values() for one in rows)]
    lines = ["| masks | " + " | ".join(COLUMNS[name] for name in used) + " |", "|---" * (len(used) + 1) + "|"]
    for label, rows in results.items():
        cells = [_cell([100 * one[name] for one in rows if one[name] is not None]) for name in used]  # type: ignore[operator]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.1f}..{max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def save(workspace: Path, name: str, results: Mapping[str, Sequence[Figures]]) -> None:
    """Keep what is there so far."""
    workspace.mkdir(parents=True, exist_ok=True)
    write_json(workspace / f"{name}.json", {label: [dict(one) for one in rows] for label, rows in results.items()})
    write_bytes(workspace / f"{name}.md", (table(results) + "\n").encode())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True, help="folder for data, artifacts and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="dataset and training seeds")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=160, help="validation images")
    parser.add_argument("--rows", choices=tuple(SETS), default="ladder", help="which table")
    parser.add_argument("--photos", type=Path, help="photos in the VOC layout, instead of the built-in data")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of MobileNetV2, with --photos")
    parser.add_argument("--skip-segmenters", action="store_true", help="masks only")
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.photos is None) != (options.weights is None):
        parser.error("--photos and --weights go together.")
    return options


if __name__ == "__main__":
    sys.exit(main())
