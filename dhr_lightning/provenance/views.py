"""The dataset of a configuration: read once, digested once (no torch)."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dhr_lightning.artifacts.manifest import digest_config, digest_ids
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.catalog import DatasetInfo, Record
from dhr_lightning.data.registry import resolve_dataset
from dhr_lightning.data.untagged import usable_images


class DataView:
    """The dataset of a `data` section: its images are read once, and digested once.

    Args:
        data: `dataset`, `root`, `options`, `untagged`, `limit` and `workspace` count.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.info: DatasetInfo = resolve_dataset(data)
        self.root = Path(data.get("root") or self.info.root)
        self.workspace = Path(data.get("workspace") or ".")
        self.store = ArtifactStore(self.workspace / "artifacts", self.info.name)
        self._policy = data.get("untagged") or "drop"
        self._records: dict[str, list[Record]] = {}
        self._digests: dict[str, tuple[str, str]] = {}

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Splits that the dataset has."""
        return self.info.splits(self.root)

    def records(self, split: str) -> list[Record]:
        """Images of a split; of the training split those that the policy for untagged images keeps."""
        if split not in self._records:
            found = self.info.read(self.root, split, self.info.classes)
            self._records[split] = usable_images(found, split, self.info.classes, policy=self._policy)
        return self._records[split]

    def digest(self, split: str) -> str:
        """Digest of ids, tags and image file sizes: the data a step learns from."""
        return self._both_digests(split)[0]

    def ids_digest(self, split: str) -> str:
        """Digest of the image ids alone."""
        return self._both_digests(split)[1]

    def _both_digests(self, split: str) -> tuple[str, str]:
        if split not in self._digests:
            records = self.records(split)
            self._digests[split] = (digest_records(records), digest_ids([record.id for record in records]))
        return self._digests[split]


class DataViews:
    """One view for each dataset that a plan touches."""

    def __init__(self) -> None:
        self._views: dict[str, DataView] = {}

    def of(self, config: Mapping[str, Any]) -> DataView:
        """The view of a configuration's `data` section."""
        data = config.get("data") or {}
        names = ("dataset", "root", "options", "untagged", "workspace", "limit")
        key = digest_config({name: data.get(name) for name in names})
        if key not in self._views:
            self._views[key] = DataView(data)
        return self._views[key]


def digest_records(records: Sequence[Record]) -> str:
    """Digest of ids, tags and image file sizes: the data a step learns from."""
    rows = sorted((record.id, record.tags, os.stat(record.image).st_size) for record in records)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
