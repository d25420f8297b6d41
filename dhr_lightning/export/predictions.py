"""Finished predictions of one split, as an export needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.errors import ArtifactError
from dhr_lightning.provenance import identity
from dhr_lightning.provenance.recorded import MAKERS, recorded_status

KIND = "prediction"


@dataclass(frozen=True)
class Predictions:
    """Predicted masks of every image of a split.

    Args:
        store: where they are.
        split: the split.
        records: its images, in the order of its list.
        classes: class list.
    """

    store: ArtifactStore
    split: str
    records: Sequence[Record]
    classes: ClassSet

    def path(self, record: Record) -> Path:
        """Mask of an image."""
        return self.store.path(KIND, self.split, record.id)


def finished_predictions(config: Mapping[str, Any], split: str) -> Predictions:
    """The predictions of a split, if they are complete and what their recipe would make today.

    Args:
        config: resolved configuration with a `data` section.
        split: its name.

    Raises:
        ArtifactError: names their state and the command that makes them.
    """
    info, root, store = identity.dataset_of(config)
    records = info.read(root, split, info.classes)
    status = recorded_status(store, KIND, split)
    if status.fresh:  # as its own recipe has it; that may have had other images than those asked for
        status = store.status(KIND, split, ids=[record.id for record in records])
    if not status.fresh:
        raise ArtifactError(
            f"{KIND}/{split} is {status} ({store.folder(KIND, split)}), so it is not exported. "
            f"Run `make {MAKERS[KIND, split].target}` for this dataset first."
        )
    return Predictions(store, split, records, info.classes)
