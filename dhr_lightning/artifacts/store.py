"""Find artifacts on disk and say whether they are what today's settings would make."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.kinds import check_name, find_kind, kind_of, round_number
from dhr_lightning.artifacts.manifest import Manifest, digest_file, digest_ids
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.errors import ArtifactError
from dhr_lightning.shards import Shard

_SHOWN = 6


@dataclass(frozen=True)
class Status:
    """State of one artifact and, unless it is fresh, the reason in words.

    Attributes:
        state: `fresh` (complete and as today's settings would make it), `stale` (made from something else),
            `partial` (interrupted, or a file is missing), `absent`, or `damaged` (files were read and cannot be used).
        reason: what changed or what is missing; empty when fresh.
    """

    state: Literal["fresh", "stale", "absent", "partial", "damaged"]
    reason: str = ""

    @property
    def fresh(self) -> bool:
        """Whether the artifact can be used as it is."""
        return self.state == "fresh"

    def __str__(self) -> str:
        """`state (reason)`, for messages."""
        return f"{self.state} ({self.reason})" if self.reason else self.state


class ArtifactStore:
    """The artifacts of one dataset, below `<root>/<dataset>`."""

    def __init__(self, root: Path | str, dataset: str) -> None:
        """Name the place; nothing is created.

        Raises:
            ArtifactError: if `dataset` is not a plain folder name.
        """
        self.root = Path(root)
        self.dataset = check_name(dataset, "dataset name")

    def folder(self, address: str, split: str) -> Path:
        """Folder of one artifact.

        Raises:
            ValueError: for an address of an unknown kind.
            ArtifactError: if `split` is not a plain folder name.
        """
        kind_of(address)
        return self.root / self.dataset / address / check_name(split, "split")

    def path(self, address: str, split: str, image_id: str) -> Path:
        """File of one image; it need not exist.

        Raises:
            ValueError: for an address of an unknown kind.
            ArtifactError: if the id could name a file outside the folder.
        """
        return layout.item_path(self.folder(address, split), address, image_id)

    def manifest(self, address: str, split: str) -> Manifest | None:
        """The manifest of a sealed artifact, or None if it is not sealed.

        Raises:
            ArtifactError: if the manifest is unreadable.
        """
        path = self.folder(address, split) / layout.MANIFEST
        return Manifest.load(path) if path.exists() else None

    def begun(self, address: str, split: str) -> bool:
        """Whether a writer has declared the artifact, finished or not."""
        folder = self.folder(address, split)
        return any((folder / name).exists() for name in (layout.MANIFEST, layout.PARTIAL))

    def status(
        self, address: str, split: str, *, expected: Manifest | None = None, ids: Sequence[str] | None = None
    ) -> Status:
        """Compare an artifact with what today's settings would make.

        Args:
            address: where it lies, such as `cam/1a2b3c4d/cam`; its last part is a kind.
            split: `train` or `val`.
            expected: what today's settings would make; None checks completeness and the recorded checkpoint only.
                If it names no checkpoint, the recorded one must be unchanged wherever its file still exists.
            ids: image ids that need a file; None takes those recorded when the artifact was made.

        Returns:
            Never raises for a damaged artifact: an unreadable manifest is stale.
        """
        folder = self.folder(address, split)
        path = folder / layout.MANIFEST
        if not path.exists():
            return self._unsealed(folder, address, expected)
        try:
            sealed = Manifest.load(path)
            reasons = [] if expected is None else sealed.changes_to(expected)
            if expected is None or expected.checkpoint is None:
                reasons += _changed_checkpoint(sealed)
            if not reasons and ids is not None and expected is None and digest_ids(ids) != sealed.ids:
                reasons.append(f"image ids {sealed.count} -> {len(ids)} images")
        except ArtifactError as error:
            return Status("stale", str(error))
        if reasons:
            return Status("stale", _join(reasons))
        return self._complete(folder, address, sealed, ids)

    def addresses(self) -> list[tuple[str, str]]:
        """Every `(address, split)` on disk, sealed or interrupted, sorted."""
        base, found = self.root / self.dataset, set()
        for folder, below, names in os.walk(base):
            if not {layout.MANIFEST, layout.PARTIAL}.isdisjoint(names):
                place = Path(folder).relative_to(base)
                found.add((place.parent.as_posix(), place.name))
                below.clear()
        return sorted(pair for pair in found if find_kind(pair[0]))

    def rounds(self, address: str, split: str) -> list[int]:
        """Numbers of the sealed mask refreshes at an address, ascending."""
        folders = (self.root / self.dataset / address).glob("round_*")
        numbers = {folder: round_number(f"{address}/{folder.name}") for folder in folders}
        return sorted(
            number
            for folder, number in numbers.items()
            if number is not None and (folder / split / layout.MANIFEST).exists()
        )

    def open_writer(
        self,
        address: str,
        split: str,
        *,
        identity: Manifest,
        ids: Sequence[str],
        palette: NDArray[np.uint8] | None = None,
        owner: bool = True,
        shard: Shard | None = None,
    ) -> ArtifactWriter:
        """Make a writer; use it in a `with` block. See `ArtifactWriter` for the arguments and errors.

        Raises:
            ValueError: if `identity` describes another artifact, or `ids` are not those of `identity`.
            ArtifactError: if an id cannot name a file.
        """
        place, described = (address, self.dataset, split), (identity.address, identity.dataset, identity.split)
        if described != place:
            raise ValueError(f"Expected an `identity` of {'/'.join(place)}, but got {'/'.join(described)}.")
        return ArtifactWriter(
            self.folder(address, split), identity=identity, ids=ids, palette=palette, owner=owner, shard=shard
        )

    def forget(self, address: str, split: str) -> None:
        """Make an artifact incomplete; the next writer clears its files whatever they were made from."""
        for name in (layout.MANIFEST, layout.PARTIAL):
            (self.folder(address, split) / name).unlink(missing_ok=True)

    def _complete(self, folder: Path, address: str, sealed: Manifest, ids: Sequence[str] | None) -> Status:
        if ids is None:
            try:
                ids = (folder / layout.IDS).read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError):
                ids = []
            if len(set(ids)) != len(ids) or digest_ids(ids) != sealed.ids:
                return Status("partial", f"{folder / layout.IDS} is absent or was changed; make the artifact again")
        extension, there = kind_of(address).codec.extension, layout.names_below(folder)
        missing = [one for one in ids if f"{one}{extension}" not in there]
        if missing:
            return Status(
                "partial", f"{len(missing)} of {len(ids)} files are missing in {folder}, first {missing[0]!r}"
            )
        return Status("fresh")

    def _unsealed(self, folder: Path, address: str, expected: Manifest | None) -> Status:
        wanted = kind_of(address).codec.extension
        count = sum(path.suffix == wanted for path in layout.files_below(folder))
        partial = folder / layout.PARTIAL
        if not partial.exists():
            if not count:
                return Status("absent", f"nothing in {folder}")
            return Status("partial", f"{count} {wanted} files in {folder} have no manifest")
        try:
            begun = Manifest.load(partial)
        except ArtifactError as error:
            return Status("partial", str(error))
        reason = f"{count} of {begun.count} files were written to {folder} before an interruption"
        changes = begun.changes_to(expected) if expected is not None else []
        if changes:
            reason += f", with other settings: {_join(changes)}"
        return Status("partial", reason)


def _changed_checkpoint(sealed: Manifest) -> list[str]:
    if sealed.checkpoint is None:
        return []
    path, recorded = Path(sealed.checkpoint["path"]), sealed.checkpoint["sha256"]
    if not path.is_file():
        return []
    today = digest_file(path)
    return [] if today == recorded else [f"checkpoint {path} {recorded[:12]} -> {today[:12]}"]


def _join(reasons: list[str]) -> str:
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return "; ".join(reasons[:_SHOWN] + more)
