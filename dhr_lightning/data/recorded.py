"""Today's state of artifacts, judged by the recipe recorded in their manifests (no torch)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.config import resolve
from dhr_lightning.data import provenance
from dhr_lightning.errors import ArtifactError, ConfigError, DataError


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
    ("mars_mask", "train"): Maker("stage3", "mars"),
    ("dhr_mask/round_00", "train"): Maker("stage3", "dhr"),
    ("prediction", "val"): Maker("stage3", "dhr"),
}


def recorded_config(store: ArtifactStore, kind: str, split: str) -> dict[str, Any] | None:
    """Resolve again the configuration files and overrides that an artifact was made with.

    Returns:
        Today's configuration, or `None` if the artifact records no recipe (an imported one).

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
        splits = {"train"} if kind.startswith("dhr_mask/") else {"train", split}
        records = {name: provenance.usable_records(config, name) for name in splits}
        expected = provenance.describe_artifact(config, kind, split, records=records, store=store)
    except (ConfigError, DataError, ArtifactError) as error:
        return Status("stale", str(error))
    return store.status(kind, split, expected=expected, ids=[record.id for record in records[split]])
