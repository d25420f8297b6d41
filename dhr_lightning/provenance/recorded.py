"""Today's state of artifacts, judged by the configuration recorded in their manifests (no torch)."""

import itertools
from collections.abc import Mapping
from typing import Any

from dhr_lightning.artifacts.store import ArtifactStore, Status
from dhr_lightning.errors import ArtifactError, ConfigError, DataError
from dhr_lightning.provenance.identity import StepIdentity
from dhr_lightning.provenance.imported import imported_status
from dhr_lightning.provenance.views import DataView, DataViews


def recorded_config(store: ArtifactStore, address: str, split: str) -> dict[str, Any] | None:
    """The configuration that an artifact was made with, in the workspace of the store; None if it records none."""
    manifest = store.manifest(address, split)
    config = manifest.info.get("config") if manifest else None
    if not isinstance(config, Mapping):
        return None
    return {**config, "data": {**(config.get("data") or {}), "workspace": str(store.root.parent)}}


def recorded_status(
    store: ArtifactStore, address: str, split: str, view: DataView | None = None, views: DataViews | None = None
) -> Status:
    """Compare an artifact with what its own configuration would make today: settings, data, inputs, weights, files.

    Args:
        store: the artifacts.
        address: of the artifact.
        split: its split.
        view: the dataset, for imported artifacts; default: that of the recorded configuration.
        views: datasets that are already read.
    """
    try:
        config = recorded_config(store, address, split)
        if config is None:
            return store.status(address, split)
        data = view or (views or DataViews()).of(config)
        imported = imported_status(data, address, split)
        if imported is not None:
            return imported
        identity = StepIdentity(config, views)
        expected = identity.describe(address, split)
        ids = [record.id for record in identity.data.records(split)]
    except (ConfigError, DataError, ArtifactError) as error:
        return Status("stale", str(error))
    return store.status(address, split, expected=expected, ids=ids)


def check_inputs(identity: StepIdentity, *, advice: Mapping[str, str]) -> None:
    """Refuse to start from inputs that are absent, incomplete or out of date.

    Args:
        identity: of the step.
        advice: the command that makes what is read, by port.

    Raises:
        ArtifactError: names the input, why it cannot be used, and the command that makes it.
    """
    store, named, views = identity.store, identity.inputs, DataViews()  # read now: it may have changed since the plan
    for port, used in identity.used_inputs().items():
        splits = [split for split in identity.data.splits if split in identity.spec.reads[port].splits]
        # what is named, too: whether it is read depends on its gate
        for address, split in itertools.product(dict.fromkeys((named[port], used)), splits):
            status = recorded_status(store, address, split, views=views)
            if not status.fresh:
                what = f"{identity.step} needs {port}, {address}/{split}, which is {status}"
                command = advice.get(port)
                raise ArtifactError(f"{what}." if command is None else f"{what}. Run `{command}` first.")
