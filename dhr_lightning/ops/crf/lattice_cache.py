"""Keeping what was built from a tensor for as long as that tensor lives unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_positive

_T = TypeVar("_T")


class _Entry(NamedTuple):
    key: Hashable
    sources: tuple[weakref.ref[Tensor] | None, ...]
    stamps: tuple[int | Tensor | None, ...]
    value: object


class LatticeCache:
    """Lattices of the last images, so that several dense CRFs of one image build them once.

    An entry is found again by the very same tensors (`is`), unchanged in place, and an equal key. It is dropped when
    one of its tensors is deleted, when `size` newer ones came, or by `clear`. Copies and pickles of a cache are empty.
    The two lattices of the dense CRF take about 200 bytes per pixel together.

    Args:
        size: entries to keep, >= 1; a batch takes one per kernel, and one more when it is refined at a smaller scale.
    """

    def __init__(self, size: int = 4) -> None:
        check_positive("size", size)
        self.size = size
        self._entries: list[_Entry] = []

    def get(self, sources: Sequence[Tensor | None], key: Hashable, build: Callable[[], _T]) -> _T:
        """Return what `build` made of these tensors before, or call it.

        Args:
            sources: tensors the value is made of; held by weak references. An empty sequence never changes.
            key: everything else that the value depends on; equal keys mean values of one type.
            build: makes the value; it must not keep the sources alive.

        Returns:
            The value, the same object as long as the sources are the same.
        """
        for entry in self._entries:
            if entry.key == key and _same(entry, sources):
                # by identity: entries of equal keys would compare their tensors
                self._entries[:] = [*(other for other in self._entries if other is not entry), entry]
                return entry.value  # type: ignore[return-value]  # an equal key means the same type
        value = build()
        references = tuple(None if source is None else self._watch(source) for source in sources)
        self._entries.append(_Entry(key, references, tuple(map(_stamp, sources)), value))
        del self._entries[: -self.size]
        return value

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"LatticeCache(size={self.size})"

    def __reduce__(self) -> tuple[type[LatticeCache], tuple[int]]:
        return LatticeCache, (self.size,)

    def _watch(self, source: Tensor) -> weakref.ref[Tensor]:
        """Refer to a tensor and drop its entries when it dies, without keeping either alive."""
        owner = weakref.ref(self)

        def forget(dead: weakref.ref[Tensor]) -> None:
            cache = owner()
            if cache is not None:
                cache._entries[:] = [e for e in cache._entries if not any(dead is source for source in e.sources)]

        return weakref.ref(source, forget)


def _same(entry: _Entry, sources: Sequence[Tensor | None]) -> bool:
    """Tell whether an entry was made of these very tensors as they are now."""
    if len(entry.sources) != len(sources):
        return False
    pairs = zip(entry.sources, entry.stamps, sources, strict=True)
    return all(
        (None if held is None else held()) is source and _unchanged(stamp, source) for held, stamp, source in pairs
    )


def _stamp(source: Tensor | None) -> int | Tensor | None:
    """What tells later whether a tensor was changed: its version, or a copy, as inference tensors count no versions."""
    if source is None:
        return None
    return source.clone() if source.is_inference() else source._version


def _unchanged(stamp: int | Tensor | None, source: Tensor | None) -> bool:
    if source is None or stamp is None:
        return source is stamp
    return torch.equal(stamp, source) if isinstance(stamp, Tensor) else stamp == source._version
