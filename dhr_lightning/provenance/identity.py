"""What an artifact of a step is made from, computed from configuration and files alone (no torch)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dhr_lightning.artifacts.manifest import Manifest, digest_config
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.config import output_settings
from dhr_lightning.data.catalog import DatasetInfo, Record
from dhr_lightning.data.gate import kind_to_read
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.data.untagged import usable_images
from dhr_lightning.errors import ConfigError

REFRESH_CALLBACK = "PseudoMaskRefresh"


class TaskFiles(NamedTuple):
    """Artifacts of a task: kinds written by split, and the arguments that name kinds read (with their defaults)."""

    writes: Mapping[str, tuple[str, ...]]
    reads: Mapping[str, str]
    features: bool = False


TASKS: dict[str, TaskFiles] = {
    "CAMTask": TaskFiles({"train": ("cam", "base_mask")}, {}),
    "USSTask": TaskFiles({"train": ("uss",)}, {}),
    "WSSTask": TaskFiles(
        {"train": ("wss_mask",), "val": ("prediction_base",), "test": ("prediction_base",)},
        {"masks": "base_mask", "init_from": "cam"},
    ),
    "MARSTask": TaskFiles({"train": ("mars_mask",)}, {"source": "base_mask"}, features=True),
    "DHRTask": TaskFiles(
        {"val": ("prediction",), "test": ("prediction",)}, {"masks": "mars_mask", "init_from": "cam"}, features=True
    ),
}


def task_name(config: Mapping[str, Any]) -> str:
    """Class name of the configured task.

    Raises:
        ConfigError: if there is none, or it is not one of ours.
    """
    name = str(config.get("model", {}).get("class_path", "")).rpartition(".")[2]
    if name not in TASKS:
        raise ConfigError(f"Expected model.class_path to be one of {', '.join(TASKS)}, but got {name!r}.")
    return name


def read_kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Artifact kinds that the configuration says to start from, each once, in a fixed order."""
    files = TASKS[task_name(config)]
    arguments = config["model"].get("init_args") or {}
    kinds = [arguments.get(name, default) for name, default in files.reads.items()]
    if files.features and (arguments.get("rebalance") or {}).get("uss", True):
        kinds.append("uss")
    return tuple(sorted({kind for kind in kinds if kind not in (None, "truth")}))


def used_kinds(config: Mapping[str, Any], store: ArtifactStore) -> dict[str, str]:
    """Kinds that the configuration names, each with the kind that is read in its place; see `gate.kind_to_read`."""
    force = bool((config["model"].get("init_args") or {}).get("force_masks", False))
    return {kind: kind_to_read(store, kind, force=force) for kind in read_kinds(config)}


def dataset_of(config: Mapping[str, Any]) -> tuple[DatasetInfo, Path, ArtifactStore]:
    """Catalog entry, root folder and artifact store of a configuration."""
    data = config.get("data") or {}
    info = resolve_dataset(data)
    store = ArtifactStore(Path(data.get("workspace", ".")) / "artifacts", info.name)
    return info, Path(data.get("root") or info.root), store


def usable_records(config: Mapping[str, Any], split: str) -> list[Record]:
    """Images of a split; of the training split those that the policy for untagged images keeps."""
    info, root, _ = dataset_of(config)
    policy = (config.get("data") or {}).get("untagged", "drop")
    return usable_images(info.read(root, split, info.classes), split, info.classes, policy=policy)


def written_artifacts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every `(kind, split)` that the configured task predicts, of the splits that the dataset has."""
    info, root, _ = dataset_of(config)
    writes, splits = TASKS[task_name(config)].writes, info.splits(root)
    return [(kind, split) for split, kinds in writes.items() if split in splits for kind in kinds]


def digest_records(records: Sequence[Record]) -> str:
    """Digest of ids, tags and image file sizes: the data a step learns from."""
    return digest_config({record.id: [list(record.tags), record.image.stat().st_size] for record in records})


def describe_artifact(
    config: Mapping[str, Any],
    kind: str,
    split: str,
    *,
    records: Mapping[str, Sequence[Record]],
    store: ArtifactStore,
    checkpoint: Path | None = None,
    info: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest that an artifact of the configured task would have if it were made now.

    Args:
        config: resolved configuration.
        kind: artifact kind.
        split: its split.
        records: usable images of `train` and of `split`.
        store: where the inputs are.
        checkpoint: weights used, if known.
        info: recorded, never compared.
    """
    inputs = {"data/train": digest_records(records["train"])}
    inputs[f"data/{split}"] = digest_records(records[split])
    for name in sorted(set(used_kinds(config, store).values())):
        manifest = store.manifest(name, "train")
        inputs[f"{name}/train"] = manifest.digest if manifest else "absent"
    manifest = Manifest.create(
        kind,
        store.dataset,
        split,
        ids=[record.id for record in records[split]],
        settings=_settings(config),
        inputs=inputs,
        checkpoint=checkpoint,
    )
    return manifest.with_info(**(info or {}))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide the content; of a user's own data that is the class list, not how its files are found."""
    settings, (info, _, _) = output_settings(config), dataset_of(config)
    if info.own_classes:
        data = {name: value for name, value in settings["data"].items() if name != "options"}
        settings = {**settings, "data": {**data, "classes": list(info.classes.names)}}
    return settings


def refresh_epochs(config: Mapping[str, Any]) -> list[int]:
    """Epochs before which DHR masks are regenerated; round k is made before epoch `refresh_epochs(config)[k]`."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    if isinstance(callbacks, Mapping):
        callbacks = [callbacks]
    for callback in callbacks:
        if str(callback.get("class_path", "")).rpartition(".")[2] == REFRESH_CALLBACK:
            every = int((callback.get("init_args") or {}).get("every", 1))
            return list(range(0, max(1, int(trainer.get("max_epochs", 1))), every))
    return []
