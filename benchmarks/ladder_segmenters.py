"""Segmenters trained on different masks with the same network, epochs and seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder_figures import Judge
from ladder_setup import Bench, step_seconds
from ladder_table import KIND, PRODUCT, ROWS

from dhr_lightning.errors import ConfigError

MASKS = {"base": "base_mask", "mars": "mars_mask", "truth": "truth"}
PREDICTION = "prediction_base"


def choose_segmenters(rows: Mapping[str, Mapping[str, Any]], also: Sequence[str] = ()) -> list[str]:
    """Names of the masks to train on: base, mars, the row of the configuration, `also`, the best row, truth.

    The best row is chosen with the ground truth, so its segmenter is an upper bound; the others are not chosen.

    Raises:
        ConfigError: if a name in `also` is no row of DHR.
    """
    unknown = [slug for slug in also if slug not in ROWS]
    if unknown:
        raise ConfigError(f"Unknown row {unknown[0]!r} in --also. Rows: {', '.join(ROWS)}.")
    best = max((slug for slug in ROWS if slug in rows), key=lambda slug: rows[slug]["miou"] or 0.0)
    return list(dict.fromkeys(("base", "mars", PRODUCT, *also, best, "truth")))


def train_segmenter(bench: Bench, judge: Judge, name: str) -> dict[str, Any]:
    """Train on one kind of mask in a workspace of its own, unless that is done, and judge its predictions.

    Args:
        bench: the seed.
        judge: its ground truth.
        name: `base`, `mars`, `truth` or a row of the ladder.

    Returns:
        A row on the validation split, with the seconds of fit and prediction.
    """
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
