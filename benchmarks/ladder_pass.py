"""One pass over the training images that writes the masks of every row of the ladder."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ladder_rows import Ladder
from ladder_setup import Bench
from ladder_table import KIND, PRODUCT
from torch.utils.data import DataLoader

from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.artifacts.writer import ArtifactWriter
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.dataset import SegmentationDataset
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.errors import ArtifactError
from dhr_lightning.pipeline import Plan
from dhr_lightning.progress import track


def compute_rows(bench: Bench, rows: Sequence[str]) -> None:
    """Write the masks of the rows that are not up to date, and the seconds per image."""
    plan, records = bench.plan("stage3_dhr", "dhr"), bench.records()
    manifest = plan.store.manifest("cam", "train")
    if manifest is None or manifest.checkpoint is None:
        raise ArtifactError(f"{plan.store.folder('cam', 'train')} records no checkpoint. Run stage 1 again.")
    ladder, ids = Ladder(plan, Path(manifest.checkpoint["path"]), bench.start), [record.id for record in records]
    identities = {slug: ladder.identity(slug, ids) for slug in rows}
    stores = {slug: bench.row_store(slug) for slug in rows}
    due = [s for s in rows if not stores[s].status(KIND, "train", expected=identities[s], ids=ids).fresh]
    with ExitStack() as stack:
        writers = {
            slug: stack.enter_context(
                stores[slug].open_writer(
                    KIND, "train", identity=identities[slug], ids=ids, palette=plan.info.classes.palette
                )
            )
            for slug in due
        }
        _write_rows(ladder, records, writers)


def _write_rows(ladder: Ladder, records: list[Record], writers: Mapping[str, ArtifactWriter]) -> None:
    """One pass over the images that some row lacks, then declare all rows complete."""
    missing = {slug: set(writer.missing()) for slug, writer in writers.items()}
    todo = [record for record in records if any(record.id in ids for ids in missing.values())]
    seconds, count = dict.fromkeys(writers, 0.0), dict.fromkeys(writers, 0)
    for index, batches in enumerate(track(BatchPairs(ladder.plan, todo, ladder.start), "mask ladder")):
        batch = batches[ladder.start]
        slugs = [slug for slug in writers if missing[slug] & set(batch["id"])]
        for slug, masks, spent in ladder.masks(batches, slugs):
            if slug == PRODUCT and index == 0:
                ladder.check(batch, masks)
            for image_id, mask in zip(batch["id"], masks, strict=True):
                writers[slug].write(image_id, np.ascontiguousarray(mask))
            seconds[slug], count[slug] = seconds[slug] + spent, count[slug] + len(masks)
    for slug, writer in writers.items():
        each = seconds[slug] / count[slug] if count[slug] else None
        writer.seal(seconds=seconds[slug], seconds_per_image=each, timed_images=count[slug])


class BatchPairs:
    """Whole images in batches by the kind of their initial masks; features come with those of `start` only."""

    def __init__(self, plan: Plan, records: list[Record], start: str) -> None:
        self._start = start
        self._loaders = {
            kind: _loader(plan, records, kind, features=kind == start) for kind in dict.fromkeys(("base_mask", start))
        }

    def __len__(self) -> int:
        return len(self._loaders[self._start])

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        """Yield one batch per kind."""
        for batches in zip(*self._loaders.values(), strict=True):
            for batch in batches:
                batch["image"] = normalize(batch["pixels"], batch["valid"])
            yield dict(zip(self._loaders, batches, strict=True))


def _loader(plan: Plan, records: list[Record], kind: str, *, features: bool) -> DataLoader[Any]:
    path = functools.partial(functools.partial, plan.store.path)
    dataset = SegmentationDataset(
        records, plan.info.classes, masks=path(kind, "train"), features=path("uss", "train") if features else None
    )
    size = int(plan.config["data"]["predict_batch_size"])
    return DataLoader(dataset, batch_size=size, collate_fn=functools.partial(collate, divisor=16))


def seconds_per_image(store: ArtifactStore, kind: str) -> float | None:
    """Seconds that making one training image's file took, by the manifest; `None` if it does not say."""
    manifest = store.manifest(kind, "train")
    if manifest is None:
        return None
    if "seconds_per_image" in manifest.info:
        return manifest.info["seconds_per_image"]
    return manifest.info["seconds"] / manifest.count if manifest.info.get("seconds") else None
