"""How stages treat artifacts that were made by others and imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import ArtifactError
from dhr_lightning.provenance import identity

IMPORTED = "imported"


def describe_import(
    store: ArtifactStore, kind: str, split: str, *, ids: Sequence[str], classes: ClassSet, source: Mapping[str, str]
) -> Manifest:
    """Manifest of an imported artifact: which images, which classes, and what was imported.

    Args:
        store: where it goes.
        kind: artifact kind.
        split: its split.
        ids: images of the split.
        classes: class list that the values mean.
        source: where it comes from (`folder`) and a digest of the files there (`content`).
    """
    settings = {IMPORTED: dict(source), "classes": list(classes.names)}
    return Manifest.create(kind, store.dataset, split, ids=ids, settings=settings)


def imported_from(store: ArtifactStore, kind: str, split: str) -> str | None:
    """The folder that an artifact was imported from, or `None` if a stage made it or it is absent."""
    manifest = store.manifest(kind, split)
    source = manifest.settings.get(IMPORTED) if manifest else None
    return str(source["folder"]) if isinstance(source, Mapping) else None


def imported_status(config: Mapping[str, Any], store: ArtifactStore, kind: str, split: str) -> Status | None:
    """State of an imported artifact, or `None` if it was not imported.

    It is fresh while every image of the split has its file and the class list is the one it was imported for; settings
    of the method do not matter to it.
    """
    manifest = store.manifest(kind, split)
    if manifest is None or IMPORTED not in manifest.settings:
        return None
    ids = [record.id for record in identity.usable_records(config, split)]
    source = manifest.settings[IMPORTED]
    classes = identity.dataset_of(config)[0].classes
    expected = describe_import(store, kind, split, ids=ids, classes=classes, source=source)
    status = store.status(kind, split, expected=expected, ids=ids)
    if status.fresh:
        return status
    return Status(status.state, f"{status.reason}; imported from {source['folder']}: import it again")


def reason_to_leave_out(
    config: Mapping[str, Any],
    store: ArtifactStore,
    outputs: Sequence[tuple[str, str]],
    later: Sequence[Mapping[str, Any]],
) -> str | None:
    """Why a step need not run because of an import, in words, or `None` if it must run; reads manifests only.

    A step is left out if an output was imported (making the others would replace it), or if the masks it reads are
    absent, nothing reads its own, and a later step starts from imported ones.

    Args:
        config: configuration of the step.
        store: the artifacts.
        outputs: what it writes.
        later: configurations of the steps after it.
    """
    for kind, split in outputs:
        folder = imported_from(store, kind, split)
        if folder is not None:
            return f"{kind}/{split} was imported from {folder} (--force makes it here instead)"
    read_later = {kind for one in later for kind in identity.read_kinds(one)}
    if read_later & {kind for kind, _ in outputs}:
        return None
    started = next((kind for kind in sorted(read_later) if imported_from(store, kind, "train")), None)
    masks = [kind for kind in identity.read_kinds(config) if kind.endswith("_mask")]
    absent = next((kind for kind in masks if store.manifest(kind, "train") is None), None)
    return f"{absent}/train is absent, and {started}/train was imported" if started and absent else None


def refuse_stale_imports(store: ArtifactStore, outputs: Mapping[tuple[str, str], Status]) -> None:
    """Raise where an imported output cannot be used any more.

    Args:
        store: the artifacts.
        outputs: states of what a step writes.

    Raises:
        ArtifactError: names it, and what to do.
    """
    for (kind, split), status in outputs.items():
        if imported_from(store, kind, split) is not None and not status.fresh:
            raise ArtifactError(f"{kind}/{split} is {status}, or make it here instead, with --force.")
