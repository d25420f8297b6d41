"""Write one artifact so that a kill at any moment leaves a state that can be resumed and is never called complete."""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dhr_lightning
from dhr_lightning.artifacts import layout
from dhr_lightning.artifacts.checksums import checksum, read_checksums, write_checksums
from dhr_lightning.artifacts.files import TEMPORARY_PREFIX, write_bytes
from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.artifacts.lock import FolderLock
from dhr_lightning.artifacts.manifest import Manifest, digest_ids, timestamp
from dhr_lightning.errors import ArtifactError
from dhr_lightning.progress import human
from dhr_lightning.shards import Shard

_PATIENCE = 60.0  # seconds for another job to declare what it writes
_FIRST_LOOK = 8  # files before the size of the rest is estimated


class ArtifactWriter:
    """Context that fills one artifact folder; made by `ArtifactStore.open_writer`.

    Files of an earlier, interrupted run with the same identity are kept (`done` says which); files of any other
    identity are removed. Leaving the context without `seal` keeps everything for the next run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Manifest,
        ids: Sequence[str],
        palette: NDArray[np.uint8] | None = None,
        owner: bool = True,
        shard: Shard | None = None,
    ) -> None:
        """Check the arguments; the folder is touched on entering the context.

        Args:
            folder: where the files go.
            identity: what the artifact is made from.
            ids: the image ids that `identity` was made with.
            palette: `(256, 3)` uint8 colours, needed for mask kinds.
            owner: False on every rank but the first of a distributed run: such a writer takes no lock, clears
                nothing and cannot seal. Enter it after the owner has entered.
            shard: which of several jobs without a network between them writes; such a writer cannot seal.

        Raises:
            ValueError: if `ids` are not those of `identity`, or a mask kind lacks its palette.
            ArtifactError: if an id cannot name a file.
        """
        self.folder = folder
        self.identity = identity
        self.ids = tuple(ids)
        self.palette = palette
        self.owner = owner
        self.shard = shard
        self._codec = kind_of(identity.address).codec
        self._paths = {image_id: layout.item_path(folder, identity.address, image_id) for image_id in self.ids}
        self._resources = ExitStack()
        self._active = False
        self._written = self._bytes = 0
        self._sums: dict[str, str] = {}
        if digest_ids(self.ids) != identity.ids:
            raise ValueError(f"Expected the {identity.count} ids of `identity`, but got {len(self.ids)} other `ids`.")
        if self._codec.needs_palette and palette is None:
            raise ValueError(f"Expected a `palette` to write {identity.address}, but got None.")

    def __enter__(self) -> "ArtifactWriter":
        """Take the folder and bring it to a state that belongs to `identity`.

        Raises:
            LockError: if another process writes the folder.
            ArtifactError: if the folder holds files of unknown origin, or (`owner=False`) no owner has entered.
        """
        if not self.owner:
            if not _has_identity(self.folder / layout.PARTIAL, self.identity):
                raise ArtifactError(f"{self.folder} is not open for this run. Open the owner's writer first.")
            self._active = True
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if self.shard is None:
                stack.enter_context(FolderLock(self.folder / layout.LOCK))
                self._refuse_others()
                self._prepare()
            else:
                stack.enter_context(FolderLock(layout.shard_lock(self.folder, self.shard)))
                with FolderLock(self.folder / layout.LOCK, patience=_PATIENCE):  # each of them declares in its turn
                    self._join()
            self._resources = stack.pop_all()
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder back."""
        self._active = False
        self._resources.close()

    def done(self, image_id: str) -> bool:
        """Whether the file of this image is already there, written now or by an interrupted run."""
        return layout.has_content(self._path(image_id))

    def missing(self) -> list[str]:
        """Ids that have no file yet, in the order of `ids`."""
        return [image_id for image_id, path in self._paths.items() if not layout.has_content(path)]

    def write(self, image_id: str, *arrays: NDArray[Any]) -> Path:
        """Write the file of one image atomically.

        Args:
            image_id: one of `ids`.
            arrays: `keys, cam` for `cam`; `features` for `features`; `mask` for mask kinds, as in `files.write_*`.

        Returns:
            The path written.

        Raises:
            ValueError: for an unknown id, another number of arrays, a wrong shape or type, or outside the context.
            ArtifactError: if the disk is full, or will be by what the files so far tell.
        """
        path = self._path(image_id)
        if not self._active:
            raise ValueError("Expected `write` inside the writer's `with` block, but the writer is not open.")
        wanted = len(self._codec.dtypes)
        if len(arrays) != wanted:
            raise ValueError(f"Expected {wanted} array(s) for {self.identity.address}, but got {len(arrays)}.")
        if "/" in image_id:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._codec.write(path, arrays, self.palette)
        self._written += 1
        self._bytes += path.stat().st_size
        self._sums[image_id] = checksum(path)
        if self._written >= _FIRST_LOOK and self._written.bit_count() == 1:
            self._refuse_small_disk()
        return path

    def seal(self, *, seconds: float | None = None, **info: Any) -> Manifest:
        """Declare the artifact complete: write its manifest.

        Args:
            seconds: time spent making it.
            info: more to record, such as `note`.

        Returns:
            The manifest written.

        Raises:
            ArtifactError: if an id has no file.
            ValueError: if this writer is not the owner or not open.
        """
        if not (self._active and self.owner) or self.shard is not None:
            raise ValueError("Expected `seal` on the open writer of the first rank, but this one is closed or shared.")
        missing = self.missing()
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(self.ids)} files are missing in {self.folder}, first {missing[0]!r}. "
                "Run the same command again; it makes only the missing ones."
            )
        facts = {"version": dhr_lightning.__version__, "created": timestamp(), **info}
        if seconds is not None:
            facts["seconds"] = round(seconds, 3)
        manifest = self.identity.with_info(**facts)
        kept = {**read_checksums(self.folder), **self._sums}  # of an interrupted run, or of another rank: read now
        write_checksums(self.folder, {one: kept.get(one) or checksum(path) for one, path in self._paths.items()})
        if hasattr(os, "sync"):
            os.sync()  # or a power cut could leave empty files under a manifest that calls them complete
        manifest.save(self.folder / layout.MANIFEST)
        (self.folder / layout.PARTIAL).unlink(missing_ok=True)
        return manifest

    def _refuse_small_disk(self) -> None:
        """Look at 8, 16, 32, ... files what the rest will take: better now than hours later."""
        left = len(self.missing())
        needed, free = left * self._bytes // self._written, shutil.disk_usage(self.folder).free
        if needed > free:
            raise ArtifactError(
                f"{self.folder} will need about {human(needed)} more for {left} images, but {human(free)} are free. "
                f"Free {human(needed - free)} and run the same command again; finished files are kept."
            )

    def _path(self, image_id: str) -> Path:
        if image_id not in self._paths:
            raise ValueError(f"Expected one of the {len(self.ids)} `ids` of this artifact, but got {image_id!r}.")
        return self._paths[image_id]

    def _join(self) -> None:
        """Declare the artifact, unless another job has: its files and those that it is writing are left alone."""
        if not _has_identity(self.folder / layout.PARTIAL, self.identity):
            self._refuse_others()
            self._prepare()

    def _refuse_others(self) -> None:
        """Raise if a job is writing its share; its lock is looked at and given back."""
        for shard in layout.shards_begun(self.folder):
            if shard != self.shard:
                with FolderLock(layout.shard_lock(self.folder, shard)):
                    pass

    def _prepare(self) -> None:
        manifest, partial = self.folder / layout.MANIFEST, self.folder / layout.PARTIAL
        files = list(layout.files_below(self.folder))
        for path in files:
            if path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)
        items = [path for path in files if path.suffix == self._codec.extension]
        if _has_identity(manifest, self.identity) or _has_identity(partial, self.identity):
            self._declare(partial)
            manifest.unlink(missing_ok=True)
            return
        own = any((self.folder / name).exists() for name in (layout.MANIFEST, layout.PARTIAL, layout.IDS))
        if items and not own:
            raise ArtifactError(
                f"{self.folder} holds {len(items)} {self._codec.extension} files without a manifest, first "
                f"{items[0].name}; they would be overwritten. Move them away, or import them as an artifact."
            )
        # Order matters: at no moment may a manifest or partial state describe files of another identity.
        manifest.unlink(missing_ok=True)
        (self.folder / layout.CHECKSUMS).unlink(missing_ok=True)
        for path in items:
            path.unlink(missing_ok=True)
        self._declare(partial)

    def _declare(self, partial: Path) -> None:
        text = "".join(f"{image_id}\n" for image_id in self.ids)
        write_bytes(self.folder / layout.IDS, text.encode(), durable=True)
        self.identity.save(partial)


def _has_identity(path: Path, identity: Manifest) -> bool:
    try:
        return Manifest.load(path).digest == identity.digest
    except ArtifactError:
        return False
