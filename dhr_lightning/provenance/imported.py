"""Artifacts that were made by others and imported: what their manifests say, and whether that still holds."""

from collections.abc import Mapping, Sequence

from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.provenance.views import DataView

IMPORTED = "imported"


def describe_import(
    store: ArtifactStore, address: str, split: str, *, ids: Sequence[str], classes: ClassSet, source: Mapping[str, str]
) -> Manifest:
    """Manifest of an imported artifact: which images, which classes, and what was imported.

    Args:
        store: where it goes.
        address: `imported/NAME/KIND`.
        split: its split.
        ids: images of the split.
        classes: class list that the values mean.
        source: where it comes from (`folder`) and a digest of the files there (`content`).
    """
    settings = {IMPORTED: dict(source), "classes": list(classes.names)}
    return Manifest.create(address, store.dataset, split, ids=ids, settings=settings)


def imported_from(store: ArtifactStore, address: str, split: str) -> str | None:
    """The folder that an artifact was imported from, or `None` if a step made it or it is absent."""
    manifest = store.manifest(address, split)
    source = manifest.settings.get(IMPORTED) if manifest else None
    return str(source["folder"]) if isinstance(source, Mapping) else None


def imported_status(view: DataView, address: str, split: str) -> Status | None:
    """State of an imported artifact, or `None` if it was not imported.

    It is fresh while every image of the split has its file and the class list is the one it was imported for.
    """
    manifest = view.store.manifest(address, split)
    if manifest is None or IMPORTED not in manifest.settings:
        return None
    ids = [record.id for record in view.records(split)]
    source = manifest.settings[IMPORTED]
    expected = describe_import(view.store, address, split, ids=ids, classes=view.info.classes, source=source)
    status = view.store.status(address, split, expected=expected, ids=ids)
    if status.fresh:
        return status
    return Status(status.state, f"{status.reason}; imported from {source['folder']}: import it again")
