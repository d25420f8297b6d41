"""Whole photos batched by canvas against batches in list order, which pad every photo to the largest of its batch."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from ratio_base import Options, Ratio, paired_medians
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from dhr_lightning.data.canvas import CANVAS_DIVISOR, canvases_of
from dhr_lightning.data.catalog import ClassSet, Record, subsample_evenly
from dhr_lightning.data.dataset import SegmentationDataset
from dhr_lightning.data.loading import CanvasBatches
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.sample import Batch, collate
from dhr_lightning.data.transforms import Augmentation
from dhr_lightning.models.backbones import build_encoder

PHOTOS, BATCH = 300, 8
CROP, WORKERS = 512, 2
# Sizes of photos as users have them, for a run without photos of one's own.
DRAWN = ((500, 375), (375, 500), (500, 333), (500, 375), (640, 480), (333, 500), (427, 640), (500, 375))


def records_of(options: Options, folder: Path) -> list[Record]:
    """Photos of the options, or grey pictures of mixed sizes in `folder`."""
    if options.photos:
        return [
            Record(path.stem, path, (1,)) for path in subsample_evenly(sorted(options.photos.glob("*.jpg")), PHOTOS)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(DRAWN * 3):
        Image.new("RGB", size, (128, 128, 128)).save(folder / f"{index}.jpg")
    return [Record(path.stem, path, (1,)) for path in sorted(folder.glob("*.jpg"))]


def loader(records: list[Record], *, by_canvas: bool) -> DataLoader[Batch]:
    """Batches of whole photos."""
    dataset = SegmentationDataset(records, ClassSet(("background", "object")))
    order = SequentialSampler(dataset)
    batches = (
        CanvasBatches(order, BATCH, canvases=canvases_of(records)) if by_canvas else BatchSampler(order, BATCH, False)
    )
    return DataLoader(dataset, batch_sampler=batches, collate_fn=lambda one: collate(one, divisor=CANVAS_DIVISOR))


@torch.no_grad()
def encode(network: torch.nn.Module, batches: DataLoader[Batch]) -> tuple[int, float]:
    """Run the network over all photos; number of batches, and pixels of the canvases for each pixel of a photo."""
    count, canvas, own = 0, 0, 0
    for batch in batches:
        network(normalize(batch["pixels"], batch["valid"]))
        count, canvas, own = count + 1, canvas + batch["valid"].numel(), own + int(batch["valid"].sum())
    return count, canvas / own


def crops(records: list[Record], workers: int) -> None:
    """Load one training crop of each photo, as a fit does; a network would run beside."""
    augmentation = Augmentation(CROP, (320, 640), 0.5, (0.3, 0.3, 0.3, 0.1), "bilinear")
    dataset = SegmentationDataset(records, ClassSet(("background", "object")), augmentation=augmentation)
    for _ in DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate):
        pass


def rows(options: Options) -> Iterator[Ratio]:
    """Measure seconds and canvas waste over whole photos."""
    with tempfile.TemporaryDirectory() as folder:
        records = records_of(options, Path(folder))
        network = build_encoder("mobilenet_v2").eval()
        facts: dict[bool, tuple[int, float]] = {}

        def run(by_canvas: bool) -> None:
            facts[by_canvas] = encode(network, loader(records, by_canvas=by_canvas))

        ours, plain = paired_medians(lambda: run(True), lambda: run(False), repeats=min(options.repeats, 3))
        several, alone = paired_medians(
            lambda: crops(records, WORKERS), lambda: crops(records, 0), repeats=min(options.repeats, 3)
        )
    batches = {name: f"{facts[name][0]} batches, canvas {facts[name][1]:.2f} times the photo" for name in facts}
    yield Ratio(
        f"whole photos batched by canvas vs in list order, {len(records)} photos, batch {BATCH}",
        plain / ours,
        goal=1.0,
        detail=f"{ours:.1f} s ({batches[True]}) vs {plain:.1f} s ({batches[False]}); MobileNetV2, decoding included",
    )
    speeds = [f"{len(records) / seconds:.0f}" for seconds in (several, alone)]
    yield Ratio(
        f"training crops of {CROP} px: {WORKERS} loading processes vs none",
        alone / several,
        detail=f"{speeds[0]} and {speeds[1]} crops per second, decoding, resizing and colour jitter included",
    )
