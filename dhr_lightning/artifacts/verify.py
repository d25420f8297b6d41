"""Read every file of an artifact again and say which cannot be used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from dhr_lightning.artifacts.checksums import checksum, read_checksums
from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.errors import ArtifactError

_THREADS = 8  # decoders of PNG leave the interpreter lock; numpy's headers cannot be read by several threads at once


def damaged_files(store: ArtifactStore, address: str, split: str, ids: Iterable[str]) -> Iterator[str | None]:
    """Decode every file of an artifact and compare its checksum; yields why one cannot be used, or `None`, by image.

    Args:
        store: where the artifact lies.
        address: of the artifact.
        split: its split.
        ids: images to look at.
    """
    kept = read_checksums(store.folder(address, split))

    def look(image_id: str) -> str | None:
        path = store.path(address, split, image_id)
        try:
            kind_of(address).codec.read(path)
        except ArtifactError as error:
            return str(error)
        changed = image_id in kept and checksum(path) != kept[image_id]
        return f"{path} was changed after it was written" if changed else None

    with ThreadPoolExecutor(_THREADS if kind_of(address).is_mask else 1) as pool:
        yield from pool.map(look, ids)
