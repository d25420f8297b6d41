"""Seconds to plan a recipe for many images: once before anything is there, once when everything is up to date.

    python benchmarks/planning.py --workspace bench/planning --images 118000

The images and masks are links to one file each, so only names, sizes and digests count, which is what planning reads.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from dhr_lightning.artifacts.kinds import kind_of
from dhr_lightning.artifacts.layout import IDS, MANIFEST
from dhr_lightning.pipeline.plan import RecipePlan, make_plan
from dhr_lightning.pipeline.request import Request
from dhr_lightning.provenance import views

Result = TypeVar("Result")
LINKS = 30_000


def main() -> None:
    """Print the two figures, and how often a split was digested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True, help="folder for the links")
    parser.add_argument("--images", type=int, default=118_000, help="training images")
    parser.add_argument("--recipe", default="no_background")
    options = parser.parse_args()
    root = make_photos(options.workspace.resolve(), options.images)
    request = Request(options.recipe, "stuff", str(root), str(options.workspace / "run"), weights=str(root / "one.jpg"))
    digests, counted = [], views.digest_records
    views.digest_records = lambda records: digests.append(len(records)) or counted(records)
    _, empty = timed(lambda: plan_and_states(request))
    print(f"nothing there: {empty:.1f} s, splits digested {len(digests)} times")
    finish(make_plan(request))
    digests.clear()
    states, finished = timed(lambda: plan_and_states(request))
    print(f"all there: {finished:.1f} s, splits digested {len(digests)} times, {states}")


def make_photos(workspace: Path, count: int) -> Path:
    """COCO-Stuff as `prepare` leaves it, with photos that are links to one."""
    root = workspace / "stuff"
    for split, part in (("train", count), ("val", count // 50)):
        table = root / "prepared" / f"{split}.csv"
        if table.is_file():
            continue
        folder = root / "images" / f"{split}2017"
        folder.mkdir(parents=True, exist_ok=True)
        table.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "one.jpg")
        link(root / "one.jpg", [folder / f"{k:012d}.jpg" for k in range(part)])
        rows = [f"{k:012d},images/{split}2017/{k:012d}.jpg,{'person' if k % 3 else 'dog'},masks" for k in range(part)]
        table.write_text("\n".join(("id,image,tags,source", *rows)) + "\n")
    return root


def link(source: Path, targets: Sequence[Path]) -> None:
    """Links to a file, and from time to time a copy: file systems allow some ten thousand links to one."""
    for k, target in enumerate(targets):
        if target.exists():
            continue
        if k % LINKS == 0:
            shutil.copyfile(source, target)
            source = target
        else:
            os.link(source, target)


def finish(plan: RecipePlan) -> None:
    """Links in place of every artifact, with the manifests that a run would write."""
    store = plan.view.store
    for step in plan.steps:
        for address, split in step.outputs():
            folder, codec = store.folder(address, split), kind_of(address).codec
            folder.mkdir(parents=True, exist_ok=True)
            source = folder.parent / f"one{codec.extension}"
            source.write_bytes(b"x")
            ids = [record.id for record in plan.view.records(split)]
            link(source, [folder / f"{one}{codec.extension}" for one in ids])
            (folder / IDS).write_text("".join(f"{one}\n" for one in ids))
            step.identity.describe(address, split).save(folder / MANIFEST)  # type: ignore[union-attr]


def plan_and_states(request: Request) -> str:
    """What `run` does before any work; returns the states."""
    plan = make_plan(request)
    states = {status.state for step in plan.steps for status in step.statuses().values()}
    return ", ".join(sorted(states))


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """Result and seconds of a call."""
    start = time.monotonic()
    result = call()
    return result, time.monotonic() - start


if __name__ == "__main__":
    main()
