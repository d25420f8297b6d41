"""Segmenters trained on different masks with the same network, epochs and seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder_figures import Judge
from ladder_setup import Bench, step_seconds
from ladder_table import KIND, PRODUCT, ROWS

from dhr_lightning.errors import ConfigError

MASKS = {"base": "base_mask", "mars": "mars_mask", "truth": "truth"}
PREDICTION = "prediction_base"


def choose_segmenters(also: Sequence[str] = ()) -> list[str]:
    """Names of what to train: on base, MARS and default masks, rows in `also`, the DHR task itself, on the truth.

    Raises:
        ConfigError: if a name in `also` is no row of DHR.
    """
    unknown = [slug for slug in also if slug not in ROWS]
    if unknown:
        raise ConfigError(f"Unknown row {unknown[0]!r} in --also. Rows: {', '.join(ROWS)}.")
    return list(dict.fromkeys(("base", "mars", PRODUCT, *also, "dhr", "truth")))


def train_segmenter(bench: Bench, judge: Judge, name: str) -> dict[str, Any]:
    """Train on one kind of mask in a workspace of its own, unless that is done, and judge its predictions.

    Args:
        bench: the seed.
        judge: its ground truth.
        name: `base`, `mars`, `truth`, a row of the ladder, or `dhr` for stage 3b itself, with its masks by rounds.

    Returns:
        A row on the validation split, with the seconds of fit and prediction.
    """
    if name == "dhr":
        bench.run("stage3_dhr", ("dhr",))
        plan = bench.plan("stage3_dhr", "dhr")
        return {
            **judge.prediction("dhr task, masks by rounds", plan.store, "prediction"),
            "seconds": step_seconds(plan),
        }
    workspace = bench.folder / "segmenters" / name
    _link_inputs(bench, name, workspace / "artifacts" / bench.dataset)
    choice = ("--model.init_args.masks", MASKS.get(name, KIND))
    bench.run("stage3_dhr", ("wss",), *choice, workspace=workspace)
    plan = bench.plan("stage3_dhr", "wss", *choice, workspace=workspace)
    label = ROWS[name].label if name in ROWS else name
    return {**judge.prediction(label, plan.store, PREDICTION), "seconds": step_seconds(plan)}


def _link_inputs(bench: Bench, name: str, artifacts: Path) -> None:
    """Show the artifacts of the seed, and the masks of a row, in the workspace of a segmenter."""
    artifacts.mkdir(parents=True, exist_ok=True)
    targets = {kind: bench.store.root / bench.dataset / kind for kind in ("cam", "base_mask", "uss", "mars_mask")}
    if name in ROWS:
        targets["dhr_mask"] = bench.row_store(name).root / bench.dataset / "dhr_mask"
    for kind, target in targets.items():
        if not (artifacts / kind).is_symlink():
            (artifacts / kind).symlink_to(target, target_is_directory=True)
