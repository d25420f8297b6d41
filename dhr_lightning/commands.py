"""Commands of our own: prepare, status, evaluate, report."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli

from dhr_lightning.artifacts.files import read_mask, write_json
from dhr_lightning.artifacts.layout import round_kind, round_number
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.config import resolve
from dhr_lightning.data import provenance
from dhr_lightning.data.catalog import DatasetInfo
from dhr_lightning.data.check import check_dataset
from dhr_lightning.data.files import check_mask, read_truth
from dhr_lightning.data.recorded import MAKERS, recorded_status
from dhr_lightning.data.registry import get_dataset
from dhr_lightning.errors import DataError
from dhr_lightning.progress import track
from dhr_lightning.report import DatasetTruth, build_report

log = logging.getLogger("dhr_lightning")


def _run(function: Callable[..., int], arguments: Sequence[str]) -> int:
    status: int = auto_cli(function, args=list(arguments), as_positional=False)
    return status


def prepare(arguments: Sequence[str]) -> int:
    """Make or check a dataset."""

    def prepare(dataset: str = "microworld", root: str | None = None, workspace: str = ".") -> int:
        """Make the built-in dataset, or check that a dataset is in place and every file can be used.

        Args:
            dataset: name of a file in configs/data.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
        """
        config = _data_config(dataset, root, workspace)
        info, folder, store = provenance.dataset_of(config)
        if info.prepare is not None:
            info.prepare(folder, config["data"].get("options") or {})
        records = {split: provenance.usable_records(config, split) for split in ("train", "val")}
        check_dataset(store.root / info.name, records, info.classes)
        for split, rows in records.items():
            tags = sum(len(record.tags) for record in rows) / len(rows)
            masks = sum(record.mask is not None for record in rows)
            log.info(
                "%s/%s: %d images, %.2f tags per image, %d ground-truth masks (%s)",
                info.name,
                split,
                len(rows),
                tags,
                masks,
                folder,
            )
        return 0

    return _run(prepare, arguments)


def status(arguments: Sequence[str]) -> int:
    """Show every artifact."""

    def status(dataset: str = "microworld", workspace: str = ".") -> int:
        """Show every artifact as fresh, stale (why), partial or absent. Exit status 1 if any is stale or partial.

        Args:
            dataset: name of the dataset.
            workspace: folder that holds artifacts/.
        """
        store = ArtifactStore(Path(workspace) / "artifacts", get_dataset(dataset).name)
        rows = {(kind, split): recorded_status(store, kind, split) for kind, split in store.kinds()}
        for kind, split in MAKERS:
            rows.setdefault((kind, split), Status("absent", f"run `make {MAKERS[kind, split].target}`"))
        width = max(len(f"{kind}/{split}") for kind, split in rows)
        for (kind, split), state in rows.items():
            manifest = store.manifest(kind, split) if state.fresh else None
            log.info("%-*s  %s%s", width, f"{kind}/{split}", state, _facts(manifest) or _advice(kind, split, state))
        return int(any(state.state in ("stale", "partial") for state in rows.values()))

    return _run(status, arguments)


def _advice(kind: str, split: str, state: Status) -> str:
    """The command that repairs an artifact; an absent one has it in its reason."""
    maker = MAKERS.get((round_kind(0), split) if round_number(kind) is not None else (kind, split))
    return f"; run `make {maker.target}`" if maker and state.state in ("stale", "partial") else ""


def _facts(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    return (
        f"  {manifest.count} images, {manifest.info.get('created', '')}, refine {manifest.info.get('refine', 'none')}"
    )


def evaluate(arguments: Sequence[str]) -> int:
    """Score a folder of masks."""

    def evaluate(
        pred: str,
        dataset: str = "microworld",
        root: str | None = None,
        split: str = "val",
        missing: str = "error",
        output: str | None = None,
    ) -> int:
        """Score a folder of palette or grey PNGs (<id>.png, class values) against the ground truth of a split.

        Args:
            pred: folder of masks.
            dataset: name of a file in configs/data.
            root: folder of the dataset; default: the one in its configuration.
            split: train or val.
            missing: error, or background to count a missing file as all background.
            output: also write the figures to this JSON file.
        """
        result = evaluate_folder(Path(pred), _data_config(dataset, root, "."), split, missing)
        _show(result)
        if output:
            write_json(Path(output), result)
        return 0

    return _run(evaluate, arguments)


def evaluate_folder(pred: Path, config: dict[str, Any], split: str, missing: str) -> dict[str, Any]:
    """Confusion over a split: mIoU, per-class IoU (None where absent), mean FPR and FNR over the union.

    Raises:
        DataError: if a prediction is missing and `missing` is `error`, or no image has ground truth.
        MaskError: if a mask does not fit its image.
    """
    import torch

    from dhr_lightning.metrics import confusion_matrix, scores

    info, root, _ = provenance.dataset_of(config)
    records = [record for record in info.read(root, split, info.classes) if record.mask is not None]
    absent = [record.id for record in records if not (pred / f"{record.id}.png").is_file()]
    if missing not in ("error", "background"):
        raise DataError(f"Expected --missing to be error or background, but got {missing!r}.")
    if missing == "background" and not info.classes.has_background:
        raise DataError(f"{info.name} has no background class, so a missing prediction cannot count as background.")
    if not records:
        raise DataError(f"Split {split!r} of {info.name} in {root} has no ground-truth mask, so nothing can be scored.")
    if absent and missing == "error":
        raise DataError(
            f"{len(absent)} of {len(records)} predictions are missing in {pred}, first {absent[0]}.png. "
            "Make them, or count them as background with --missing background."
        )
    classes = info.classes
    matrix = torch.zeros(classes.num_classes, classes.num_classes + 1, dtype=torch.int64)
    for record in track(records, "evaluate"):
        truth = read_truth(Path(str(record.mask)))
        size = (truth.shape[1], truth.shape[0])
        path = pred / f"{record.id}.png"
        mask = (
            check_mask(read_mask(path), path=path, size=size, classes=classes)
            if path.is_file()
            else np.zeros_like(truth)
        )
        pair = (torch.from_numpy(array.astype(np.int64)) for array in (mask, truth))
        matrix += confusion_matrix(*pair, num_classes=classes.num_classes, ignore_index=classes.ignore_index)
    result = scores(matrix)
    iou = {
        name: None if value != value else value for name, value in zip(classes.names, result.iou.tolist(), strict=True)
    }
    counted = f", {len(absent)} missing counted as background" if absent else ""
    protocol = (
        f"{info.name}/{split}, {len(records)} images{counted}; truth {classes.ignore_index} ignored; masks as given"
    )
    return {
        "miou": result.miou,
        "iou": iou,
        "fpr": result.mfpr,
        "fnr": result.mfnr,
        "pixel_accuracy": result.pixel_accuracy,
        "protocol": protocol,
    }


def _show(result: dict[str, Any]) -> None:
    for name, value in result["iou"].items():
        log.info("%-16s %s", name, "   -" if value is None else f"{100 * value:5.1f}")
    log.info("%-16s %5.1f   FPR %.3f  FNR %.3f", "mIoU", 100 * result["miou"], result["fpr"], result["fnr"])
    log.info("Protocol: %s.", result["protocol"])


def report(arguments: Sequence[str]) -> int:
    """Write the report."""

    def report(
        dataset: str = "microworld",
        root: str | None = None,
        workspace: str = ".",
        output: str | None = None,
        images: int = 8,
    ) -> int:
        """Write report.html (one file, works without a network) and report.json.

        Args:
            dataset: name of a file in configs/data.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/ and runs/.
            output: folder of the report; default: reports/<dataset> in the workspace.
            images: pictured images per split.
        """
        info, folder, _ = provenance.dataset_of(_data_config(dataset, root, workspace))
        target = Path(output) if output else Path(workspace) / "reports" / info.name
        write_run_report(info, folder, Path(workspace), target, images=images)
        return 0

    return _run(report, arguments)


def write_run_report(info: DatasetInfo, root: Path, workspace: Path, target: Path, *, images: int) -> None:
    """Judge every artifact of a workspace and write `report.html` and `report.json` into `target`."""
    store = ArtifactStore(workspace / "artifacts", info.name)
    build_report(
        store,
        DatasetTruth(info, root),
        split="train",
        output=target,
        title=f"{info.name}: from tags to segmentation",
        seconds=step_seconds(workspace / "runs" / info.name, store),
        notes=refinement_notes(store),
        max_images=images,
        progress=track,
    )


def step_seconds(runs: Path, store: ArtifactStore) -> dict[str, float]:
    """Seconds of every fit and of every prediction, in the order of the pipeline.

    One prediction writes all artifacts of its step, so it counts once; mask rounds are part of their fit.
    """
    seconds = {}
    for step in ("cam", "uss", "wss", "mars", "dhr"):
        path = runs / step / "state.json"
        if path.is_file():
            seconds[f"fit {step}"] = float(json.loads(path.read_text()).get("seconds", 0.0))
        for (kind, split), maker in MAKERS.items():
            manifest = store.manifest(kind, split)
            if maker.step == step and round_number(kind) is None and manifest is not None:
                seconds[f"predict {step}"] = float(manifest.info.get("seconds", 0.0))
    return seconds


def refinement_notes(store: ArtifactStore) -> list[str]:
    """Which refinement made which masks."""
    used: dict[str, list[str]] = {}
    for kind, split in store.kinds():
        manifest = store.manifest(kind, split)
        name = manifest.info.get("refine", "none") if manifest else "none"
        if name != "none":
            used.setdefault(name, []).append(f"{kind}/{split}")
    return [f"Refined with {name}: {', '.join(kinds)}." for name, kinds in used.items()]


def _data_config(dataset: str, root: str | None, workspace: str) -> dict[str, Any]:
    overrides = [*(["--data.root", root] if root else []), "--data.workspace", workspace]
    return resolve([f"data/{dataset}.yaml"], overrides)
