"""Sanity gate of steps that remove labels from masks: what was removed, and what the next step reads (no torch)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.kinds import find_kind
from dhr_lightning.artifacts.manifest import Manifest
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import ClassSet, Record

FORCE = "model.init_args.force_masks"


@dataclass(frozen=True)
class Gate:
    """What a step removed from the masks it started from. Counted without ground truth.

    Attributes:
        source: address of the masks that the step started from.
        lost_tags: share of the (image, tag) pairs with a pixel in the source mask that have none left, in [0, 1].
        rejected: share of the foreground pixels of the source mask whose label was changed, in [0, 1].
        max_lost_tags: the step is harmful if `lost_tags` exceeds it.
        max_rejected: the step is harmful if `rejected` exceeds it.
    """

    source: str
    lost_tags: float
    rejected: float
    max_lost_tags: float
    max_rejected: float

    @property
    def harmful(self) -> bool:
        """Whether the step removed more than it may."""
        return self.lost_tags > self.max_lost_tags or self.rejected > self.max_rejected

    @classmethod
    def read(cls, manifest: Manifest | None) -> "Gate | None":
        """The gate in the manifest of a sealed artifact; None where there is none, as of a step that has no gate."""
        recorded = manifest.info.get("gate") if manifest else None
        return cls(**{field.name: recorded[field.name] for field in fields(cls)}) if recorded else None

    def record(self) -> dict[str, Any]:
        """All attributes and the verdict, for `info.gate` of a manifest."""
        return {**asdict(self), "harmful": self.harmful}

    def describe(self) -> str:
        """The figures in words."""
        lost, rejected = 100 * self.lost_tags, 100 * self.rejected
        return (
            f"removes the last pixel of {lost:.1f} % of the tags that {self.source} has "
            f"(limit {100 * self.max_lost_tags:g} %) and {rejected:.1f} % of its foreground pixels "
            f"(limit {100 * self.max_rejected:g} %)"
        )

    def verdict(self) -> str:
        """The figures; of harmful masks also what follows, and how to use them all the same."""
        if not self.harmful:
            return self.describe()
        return (
            f"harmful, {self.describe()}. The next step reads {self.source} instead; to use these masks all the same, "
            f"set {FORCE}: true there"
        )


def measure_removal(
    store: ArtifactStore,
    address: str,
    records: Sequence[Record],
    *,
    source: str,
    classes: ClassSet,
    progress: Callable[[Iterable[Record], str], Iterable[Record]] = lambda items, what: items,
) -> tuple[float, float]:
    """Compare the masks of a step with those it started from, file by file.

    Files on disk are compared, not what this process has predicted, so an interrupted and continued step counts
    every image. Ground truth is not read.

    Args:
        store: the artifacts.
        address: address of the masks of the training split that the step has written, complete.
        records: images and tags of the training split.
        source: address of the masks that the step started from.
        classes: tells background and ignored pixels.
        progress: wrapper `(records, description) -> iterable of the same records`.

    Returns:
        `lost_tags` and `rejected` of `Gate`; 0 where the source holds no foreground.

    Raises:
        ArtifactError: if a mask cannot be read.
    """
    lost = tags = changed = foreground = 0
    for record in progress(records, f"{address} against {source}"):
        before, after = (read_mask(store.path(name, "train", record.id)) for name in (source, address))
        labelled = (before != classes.ignore_index) & (before >= classes.offset)
        foreground, changed = foreground + int(labelled.sum()), changed + int((labelled & (after != before)).sum())
        pixels_before, pixels_after = (np.bincount(mask.ravel(), minlength=256) for mask in (before, after))
        had = [tag for tag in record.tags if pixels_before[tag]]
        tags, lost = tags + len(had), lost + sum(not pixels_after[tag] for tag in had)
    return lost / max(tags, 1), changed / max(foreground, 1)


def address_to_read(store: ArtifactStore, address: str, *, force: bool = False) -> str:
    """Address that a step reads where its recipe names `address`.

    That is `address` itself, or what its step started from while the manifest of `address` calls it harmful. Digests,
    training, status and report all ask here, so they agree, and follow when the masks are made again with another
    verdict.

    Args:
        store: the artifacts.
        address: named in the configuration, of the training split.
        force: read `address` whatever its gate says.
    """
    gate = None if force or not find_kind(address) else Gate.read(store.manifest(address, "train"))
    return address_to_read(store, gate.source) if gate and gate.harmful else address


def gate_notes(store: ArtifactStore, names: Mapping[tuple[str, str], str]) -> list[str]:
    """One sentence for every artifact with a gate: what was removed, and whether later steps use it.

    Args:
        store: the artifacts.
        names: what people call each `(address, split)` that is looked at.
    """
    manifests = {output: store.manifest(*output) for output in names}
    used = {name for manifest in manifests.values() if manifest for name in manifest.inputs}
    called = {address: name for (address, _), name in names.items()}
    notes = []
    for (address, split), manifest in manifests.items():
        gate = Gate.read(manifest)
        if gate is None:
            continue
        source = called.get(gate.source, gate.source)
        text = gate.describe().replace(gate.source, source)
        if not gate.harmful:
            notes.append(f"{called[address]} {text}.")
        elif f"{address}/{split}" in used:
            notes.append(f"{called[address]} is harmful: it {text}. It is used all the same ({FORCE}: true).")
        else:
            notes.append(f"{called[address]} is harmful: it {text}. It is not used; later steps read {source}.")
    return notes
