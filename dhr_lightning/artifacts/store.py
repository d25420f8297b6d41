"""Find artifacts on disk and say whether they are what today's settings would make."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.manifest import Manifest, digest_file, digest_ids
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.errors import ArtifactError

_SHOWN = 6


@dataclass(frozen=True)
class Status:
    """State of one artifact and, unless it is fresh, the reason in words.

    Attributes:
        state: `fresh` (complete and as today's settings would make it), `stale` (made from something else),
            `partial` (interrupted, or a file is missing) or `absent`.
        reason: what changed or what is missing; empty when fresh.
    """

    state: Literal["fresh", "stale", "absent", "partial"]
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
        self.dataset = layout.check_name(dataset, "dataset name")

    def folder(self, kind: str, split: str) -> Path:
        """Folder of one artifact.

        Raises:
            ValueError: for an unknown kind.
            ArtifactError: if `split` is not a plain folder name.
        """
        layout.extension(kind)
        return self.root / self.dataset / kind / layout.check_name(split, "split")

    def path(self, kind: str, split: str, image_id: str) -> Path:
        """File of one image; it need not exist.

        Raises:
            ValueError: for an unknown kind.
            ArtifactError: if the id could name a file outside the folder.
        """
        return layout.item_path(self.folder(kind, split), kind, image_id)

    def manifest(self, kind: str, split: str) -> Manifest | None:
        """The manifest of a sealed artifact, or None if it is not sealed.

        Raises:
            ArtifactError: if the manifest is unreadable.
        """
        path = self.folder(kind, split) / layout.MANIFEST
        return Manifest.load(path) if path.exists() else None

    def status(
        self, kind: str, split: str, *, expected: Manifest | None = None, ids: Sequence[str] | None = None
    ) -> Status:
        """Compare an artifact with what today's settings would make.

        Args:
            kind: artifact kind.
            split: `train` or `val`.
            expected: what today's settings would make; None checks completeness and the recorded checkpoint only.
                If it names no checkpoint, the recorded one must be unchanged wherever its file still exists.
            ids: image ids that need a file; None takes those recorded when the artifact was made.

        Returns:
            Never raises for a damaged artifact: an unreadable manifest is stale.
        """
        folder = self.folder(kind, split)
        path = folder / layout.MANIFEST
        if not path.exists():
            return self._unsealed(folder, kind, expected)
        try:
            sealed = Manifest.load(path)
            reasons = [] if expected is None else sealed.changes_to(expected)
            if expected is None or expected.checkpoint is None:
                reasons += _changed_checkpoint(sealed)
            if not reasons and ids is not None and digest_ids(ids) != sealed.ids:
                reasons.append(f"image ids {sealed.count} -> {len(ids)} images")
        except ArtifactError as error:
            return Status("stale", str(error))
        if reasons:
            return Status("stale", _join(reasons))
        return self._complete(folder, kind, sealed, ids)

    def kinds(self) -> list[tuple[str, str]]:
        """Every `(kind, split)` on disk, sealed or interrupted, sorted."""
        base = self.root / self.dataset
        found = []
        for name in (layout.MANIFEST, layout.PARTIAL):
            for depth in ("*/*", f"{layout.ROUNDS}/*/*"):
                found += [path.parent.relative_to(base) for path in base.glob(f"{depth}/{name}")]
        pairs = {(place.parent.as_posix(), place.name) for place in found}
        return sorted(pair for pair in pairs if layout.is_kind(pair[0]))

    def rounds(self, split: str) -> list[int]:
        """Numbers of the sealed `dhr_mask` rounds, ascending."""
        numbers = (
            layout.round_number(kind)
            for kind, where in self.kinds()
            if where == split and (self.folder(kind, where) / layout.MANIFEST).exists()
        )
        return sorted(number for number in numbers if number is not None)

    def open_writer(
        self,
        kind: str,
        split: str,
        *,
        identity: Manifest,
        ids: Sequence[str],
        palette: NDArray[np.uint8] | None = None,
        owner: bool = True,
    ) -> ArtifactWriter:
        """Make a writer; use it in a `with` block. See `ArtifactWriter` for the arguments and errors.

        Raises:
            ValueError: if `identity` describes another artifact, or `ids` are not those of `identity`.
            ArtifactError: if an id cannot name a file.
        """
        place, described = (kind, self.dataset, split), (identity.kind, identity.dataset, identity.split)
        if described != place:
            raise ValueError(f"Expected an `identity` of {'/'.join(place)}, but got {'/'.join(described)}.")
        return ArtifactWriter(self.folder(kind, split), identity=identity, ids=ids, palette=palette, owner=owner)

    def forget(self, kind: str, split: str) -> None:
        """Make an artifact incomplete; the next writer clears its files whatever they were made from."""
        for name in (layout.MANIFEST, layout.PARTIAL):
            (self.folder(kind, split) / name).unlink(missing_ok=True)

    def _complete(self, folder: Path, kind: str, sealed: Manifest, ids: Sequence[str] | None) -> Status:
        if ids is None:
            try:
                ids = (folder / layout.IDS).read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError):
                ids = []
            if len(set(ids)) != len(ids) or digest_ids(ids) != sealed.ids:
                return Status("partial", f"{folder / layout.IDS} is absent or was changed; make the artifact again")
        missing = [one for one in ids if not layout.has_content(layout.item_path(folder, kind, one))]
        if missing:
            return Status(
                "partial", f"{len(missing)} of {len(ids)} files are missing in {folder}, first {missing[0]!r}"
            )
        return Status("fresh")

    def _unsealed(self, folder: Path, kind: str, expected: Manifest | None) -> Status:
        wanted = layout.extension(kind)
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
