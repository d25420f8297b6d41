"""Today's state of artifacts, judged by the recipe recorded in their manifests (no torch)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.config import resolve
from dhr_lightning.data.catalog import DatasetInfo
from dhr_lightning.errors import ArtifactError, ConfigError, DataError
from dhr_lightning.provenance import identity
from dhr_lightning.provenance.imported import imported_from, imported_status


class Maker(NamedTuple):
    """Who writes an artifact: the make target and the step within it."""

    target: str
    step: str


MAKERS: Mapping[tuple[str, str], Maker] = {
    ("cam", "train"): Maker("stage1", "cam"),
    ("base_mask", "train"): Maker("stage1", "cam"),
    ("uss", "train"): Maker("stage2", "uss"),
    ("wss_mask", "train"): Maker("stage3", "wss"),
    ("prediction_base", "val"): Maker("stage3", "wss"),
    ("prediction_base", "test"): Maker("stage3", "wss"),
    ("mars_mask", "train"): Maker("stage3", "mars"),
    ("dhr_mask/round_00", "train"): Maker("stage3", "dhr"),
    ("prediction", "val"): Maker("stage3", "dhr"),
    ("prediction", "test"): Maker("stage3", "dhr"),
}


STEPS = tuple(dict.fromkeys(maker.step for maker in MAKERS.values()))


def expected_artifacts(info: DatasetInfo, root: Path) -> list[tuple[str, str]]:
    """Every `(kind, split)` that the stages make of a dataset: of its splits, and no MARS masks without background."""
    splits = info.splits(root)
    left_out = () if info.classes.has_background else ("mars_mask",)
    return [(kind, split) for kind, split in MAKERS if split in splits and kind not in left_out]


def recorded_config(store: ArtifactStore, kind: str, split: str) -> dict[str, Any] | None:
    """Resolve again the configuration files and overrides that an artifact was made with.

    Returns:
        Today's configuration, or `None` if the artifact records no recipe.

    Raises:
        ConfigError: if a file of the recipe is gone or broken.
    """
    manifest = store.manifest(kind, split)
    recipe = (manifest.info if manifest else {}).get("recipe") or {}
    return resolve(recipe["configs"], recipe["overrides"]) if recipe.get("configs") else None


def recorded_status(store: ArtifactStore, kind: str, split: str) -> Status:
    """Compare an artifact with what its own recipe would make today: settings, data, inputs, weights, files."""
    try:
        config = recorded_config(store, kind, split)
        if config is None:
            return store.status(kind, split)
        imported = imported_status(config, store, kind, split)
        if imported is not None:
            return imported
        splits = {"train"} if kind.startswith("dhr_mask/") else {"train", split}
        records = {name: identity.usable_records(config, name) for name in splits}
        expected = identity.describe_artifact(config, kind, split, records=records, store=store)
    except (ConfigError, DataError, ArtifactError) as error:
        return Status("stale", str(error))
    return store.status(kind, split, expected=expected, ids=[record.id for record in records[split]])


def check_inputs(config: Mapping[str, Any], store: ArtifactStore, *, step: str, dataset: str) -> None:
    """Refuse to start from inputs that are absent, incomplete or out of date.

    Args:
        config: configuration of the step.
        store: the artifacts.
        step: name of the step.
        dataset: what is added to the `make` command, such as ` DATASET=voc`.

    Raises:
        ArtifactError: names the input, why it cannot be used, and the command that makes it.
    """
    start = (config["model"].get("init_args") or {}).get("init_from")
    others = {kind for kind in identity.read_kinds(config) if imported_from(store, kind, "train")}
    used = identity.used_kinds(config, store)
    for kind in sorted({*used, *used.values()}):  # what is named, too: whether it is read depends on its gate
        target = MAKERS[kind, "train"].target if (kind, "train") in MAKERS else "stage3"
        status = recorded_status(store, kind, "train")
        manifest = store.manifest(kind, "train") if status.fresh else None
        if kind == start and others and (manifest is None or manifest.checkpoint is None):
            raise ArtifactError(
                f"{step} starts from imported masks, but also from the network that made {kind}/train, which is not "
                f"here. Run `make {target}{dataset}` for it, or add --overlay imported.yaml to start without it."
            )
        if not status.fresh and imported_from(store, kind, "train"):
            raise ArtifactError(f"{step} needs {kind}/train, which is {status}.")
        if not status.fresh:
            raise ArtifactError(
                f"{step} needs {kind}/train, which is {status} ({store.folder(kind, 'train')}). "
                f"Run `make {target}{dataset}` first."
            )
