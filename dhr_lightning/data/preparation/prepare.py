"""Put a benchmark in place: check its official files, fetch and unpack them on request, build what it needs."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dhr_lightning.data.catalog import ClassSet, refuse_options
from dhr_lightning.data.datasets.prepared import FOLDER
from dhr_lightning.data.datasets.voc import list_path, read_ids
from dhr_lightning.data.preparation.ade import prepare_ade
from dhr_lightning.data.preparation.archives import unpack
from dhr_lightning.data.preparation.coco import prepare_coco
from dhr_lightning.data.preparation.context import prepare_context
from dhr_lightning.data.preparation.downloads import fetch, verify
from dhr_lightning.data.preparation.official_files import BENCHMARKS, Benchmark, OfficialFile, describe
from dhr_lightning.data.preparation.sbd import build_train_aug, find_sbd
from dhr_lightning.data.preparation.stuff import prepare_stuff
from dhr_lightning.errors import DataError
from dhr_lightning.progress import log


def prepare_benchmark(
    name: str, root: Path, classes: ClassSet, options: Mapping[str, Any], *, download: bool = False
) -> None:
    """Check, fetch, unpack and build; says what it does, and does only what is not done yet.

    Archives in `<root>/downloads` are unpacked wherever they come from; without `download` nothing is fetched.

    Args:
        name: dataset in the catalog; others than the benchmarks have no official files, and nothing happens.
        root: folder of the dataset.
        classes: class list.
        options: `data.options` of the configuration.
        download: fetch what is missing from its public address.

    Raises:
        ConfigError: if an option is unknown.
        DataError: if official files are missing, damaged or of another kind.
        MaskError: if a mask holds ids that the dataset does not have.
    """
    if name not in BENCHMARKS:
        return
    benchmark = BENCHMARKS[name]
    log.info("%s", benchmark.licence)
    for file in benchmark.files:
        if file.missing(root):
            _obtain(file, root, download=download)
    for line in describe(benchmark, root):
        log.info("%s", line)
    _require(name, benchmark, root)
    _BUILDERS[name](root, classes, options)
    _compare_counts(name, benchmark, root)


def _obtain(file: OfficialFile, root: Path, *, download: bool) -> None:
    path, into = file.archive(root), root / file.into
    if download and not path.is_file():
        log.info("fetching %s (%s) from %s", file.name, file.size, file.url)
        fetch(file.url, path, checksum=file.checksum)
    elif path.is_file():
        verify(path, file.checksum)
    if not path.is_file():
        return
    if not file.is_archive:
        os.replace(path, into / file.name)
        return
    file.unfinished(root).touch()
    count = unpack(path, into, prefix=file.prefix)
    file.unfinished(root).unlink()
    log.info("unpacked %d files of %s; the archive can be deleted", count, path)


def _require(name: str, benchmark: Benchmark, root: Path) -> None:
    missing = [file for file in benchmark.files if file.missing(root) and not file.optional]
    if missing:
        raise DataError(
            f"{name} in {root} is not complete: {len(missing)} of {len(benchmark.files)} official files are missing, "
            f"first {missing[0].name}. Put them in place as listed above, or their archives into {root / 'downloads'}, "
            "and run the same command again; --download fetches them."
        )


def _compare_counts(name: str, benchmark: Benchmark, root: Path) -> None:
    for split, expected in benchmark.images:
        if name == "voc":
            found = len(read_ids(list_path(root, split)))
        else:
            with (root / FOLDER / f"{split}.csv").open(encoding="utf-8") as table:
                found = sum(1 for _ in table) - 1
        if found != expected:
            log.warning(
                "WARNING: %s/%s has %d images here and %d in the published protocol: figures cannot be compared with "
                "published ones.",
                name, split, found, expected,
            )  # fmt: skip


def _prepare_voc(root: Path, classes: ClassSet, options: Mapping[str, Any]) -> None:
    refuse_options("voc", options)
    sbd = find_sbd(root)
    if sbd is not None:
        written = build_train_aug(root, sbd, classes)
        log.info("train_aug: %d masks written from %s", written, sbd)


_BUILDERS: dict[str, Callable[[Path, ClassSet, Mapping[str, Any]], None]] = {
    "voc": _prepare_voc,
    "coco": prepare_coco,
    "context": prepare_context,
    "ade": prepare_ade,
    "stuff": prepare_stuff,
}
