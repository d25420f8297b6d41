"""Commands of our own: init, prepare, doctor, import, status, evaluate, export, report."""

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from dhr_lightning.artifacts.files import write_json
from dhr_lightning.artifacts.layout import round_kind, round_number
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.config import data_file, resolve
from dhr_lightning.data.catalog import DatasetInfo
from dhr_lightning.data.gate import Gate, gate_notes
from dhr_lightning.data.preparation.check import check_dataset
from dhr_lightning.data.preparation.prepare import prepare_benchmark
from dhr_lightning.evaluate import evaluate_folder, show_scores
from dhr_lightning.export.targets import write_export
from dhr_lightning.importing.command import import_files
from dhr_lightning.inspection.command import run_doctor
from dhr_lightning.inspection.init import init_folder
from dhr_lightning.progress import track
from dhr_lightning.provenance import identity
from dhr_lightning.provenance.imported import imported_from
from dhr_lightning.provenance.recorded import MAKERS, STEPS, expected_artifacts, recorded_status
from dhr_lightning.report import DatasetTruth, build_report

log = logging.getLogger("dhr_lightning")


def _run(function: Callable[..., int], arguments: Sequence[str], *, positional: bool = False) -> int:
    status: int = auto_cli(function, args=_spell_flags(function, arguments), as_positional=positional)
    return status


def _spell_flags(function: Callable[..., int], arguments: Sequence[str]) -> list[str]:
    """`--force` alone as `--force=true`: jsonargparse wants a value."""
    flags = {f"--{name}" for name, one in inspect.signature(function).parameters.items() if one.annotation is bool}
    return [
        f"{word}=true" if word in flags and after.lower() not in ("true", "false") else word
        for word, after in pairwise([*arguments, ""])
    ]


def init(arguments: Sequence[str]) -> int:
    """Write the configuration of a folder of photos."""
    return _run(init_folder, arguments, positional=True)


def import_(arguments: Sequence[str]) -> int:
    """Import what others made."""
    return _run(import_files, arguments, positional=True)


def prepare(arguments: Sequence[str]) -> int:
    """Make or check a dataset."""

    def prepare(
        dataset: str = "microworld", root: str | None = None, workspace: str = ".", download: bool = False
    ) -> int:
        """Make the built-in dataset, or build what a benchmark needs, and check that every file can be used.

        Args:
            dataset: name of a file in configs/data.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
            download: fetch missing official files of a benchmark from their public addresses.
        """
        config = _data_config(dataset, root, workspace)
        info, folder, store = identity.dataset_of(config)
        options = config["data"].get("options") or {}
        if info.prepare is not None:
            info.prepare(folder, options)
        prepare_benchmark(info.name, folder, info.classes, options, download=download)
        records = {split: identity.usable_records(config, split) for split in info.splits(folder)}
        check_dataset(store.root / info.name, records, info.classes)
        for split, rows in records.items():
            tags = sum(len(record.tags) for record in rows) / max(len(rows), 1)
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


def doctor(arguments: Sequence[str]) -> int:
    """Look at a dataset before any long work."""
    return run_doctor(arguments)


def status(arguments: Sequence[str]) -> int:
    """Show every artifact."""

    def status(dataset: str = "microworld", root: str | None = None, workspace: str = ".") -> int:
        """Show every artifact as fresh, stale (why), partial or absent. Exit status 1 if any is stale or partial.

        Args:
            dataset: name of a file in configs/data, or path of a YAML file.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
        """
        info, folder, store = identity.dataset_of(_data_config(dataset, root, workspace))
        rows = {(kind, split): recorded_status(store, kind, split) for kind, split in store.kinds()}
        for kind, split in expected_artifacts(info, folder):
            rows.setdefault((kind, split), Status("absent", f"run `make {MAKERS[kind, split].target}`"))
        width = max(len(f"{kind}/{split}") for kind, split in rows)
        for (kind, split), state in rows.items():
            manifest = store.manifest(kind, split) if state.fresh else None
            log.info(
                "%-*s  %s%s", width, f"{kind}/{split}", state, _facts(manifest) or _advice(store, kind, split, state)
            )
        return int(any(state.state in ("stale", "partial") for state in rows.values()))

    return _run(status, arguments)


def _advice(store: ArtifactStore, kind: str, split: str, state: Status) -> str:
    """The command that repairs an artifact; an absent or imported one has it in its reason."""
    if imported_from(store, kind, split):
        return ""
    maker = MAKERS.get((round_kind(0), split) if round_number(kind) is not None else (kind, split))
    return f"; run `make {maker.target}`" if maker and state.state in ("stale", "partial") else ""


def _facts(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    source = "imported" if "imported" in manifest.settings else f"refine {manifest.info.get('refine', 'none')}"
    gate = Gate.read(manifest)
    verdict = f"; {gate.verdict()}" if gate else ""
    return f"  {manifest.count} images, {manifest.info.get('created', '')}, {source}{verdict}"


def evaluate(arguments: Sequence[str]) -> int:
    """Score a folder of masks."""

    def evaluate(
        pred: str,
        dataset: str = "microworld",
        root: str | None = None,
        split: str = "val",
        missing: str = "error",
        compat: str = "none",
        json: str | None = None,
    ) -> int:
        """Score a folder of palette or grey PNGs (<id>.png, class values) against the ground truth of a split.

        Args:
            pred: folder of masks.
            dataset: name of a file in configs/data.
            root: folder of the dataset; default: the one in its configuration.
            split: train or val; a test split has no ground truth.
            missing: error, or background to count a missing file as all background.
            compat: none, or dhr to leave out the images that the evaluator published with DHR leaves out.
            json: also write the figures to this file.
        """
        info, folder, _ = identity.dataset_of(_data_config(dataset, root, "."))
        result = evaluate_folder(Path(pred), info, folder, split, missing=missing, compat=compat, progress=track)
        show_scores(result)
        if json:
            write_json(Path(json), result)
        return 0

    return _run(evaluate, arguments)


def export(arguments: Sequence[str]) -> int:
    """Hand predictions over."""

    def export(
        to: str,
        dataset: str = "voc",
        root: str | None = None,
        workspace: str = ".",
        split: str = "test",
        output: str | None = None,
        force: bool = False,
    ) -> int:
        """Export the finished predictions of a split.

        Args:
            to: voc-server: palette PNGs in results/VOC2012/Segmentation/comp6_test_cls (comp6_val_cls) and a tar.
            dataset: name of a file in configs/data, or path of a YAML file.
            root: folder of the dataset; default: the one in its configuration.
            workspace: folder that holds artifacts/.
            split: test or val.
            output: folder to write; default: exports/DATASET/TARGET_SPLIT in the workspace.
            force: replace another export there.
        """
        config = _data_config(dataset, root, workspace)
        name = identity.dataset_of(config)[0].name
        target = Path(output) if output else Path(workspace) / "exports" / name / f"{to}_{split}"
        write_export(to, config, split, target, force=force)
        return 0

    return _run(export, arguments)


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
        info, folder, _ = identity.dataset_of(_data_config(dataset, root, workspace))
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
        notes=[*refinement_notes(store), *gate_notes(store)],
        max_images=images,
        progress=track,
    )


def step_seconds(runs: Path, store: ArtifactStore) -> dict[str, float]:
    """Seconds of every fit and of every prediction, in the order of the pipeline.

    One prediction writes all artifacts of its step, so it counts once; mask rounds are part of their fit.
    """
    seconds = {}
    for step in STEPS:
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
    return resolve([data_file(dataset)], overrides)
