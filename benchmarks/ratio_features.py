"""Features of a frozen backbone for photos: processes of one thread against a plain loop over timm."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from ratio_base import Options, Ratio, paired_medians
from torch.utils.data import DataLoader

from dhr_lightning.data.catalog import Record, subsample_evenly
from dhr_lightning.data.frozen_features import FeatureDataset, FeatureReader, FrozenSettings

PHOTOS = 24
BACKBONE, TAPS, SIDE = "vit_base_patch16_clip_quickgelu_224.openai", ("block8", "block11", "keys", "vv"), 448


def records_of(options: Options, folder: Path) -> list[Record]:
    """Photos of the options, or pictures of noise in `folder`."""
    if options.photos:
        return [
            Record(path.stem, path, (1,)) for path in subsample_evenly(sorted(options.photos.glob("*.jpg")), PHOTOS)
        ]
    generator = np.random.default_rng(0)
    for index in range(PHOTOS):
        pixels = generator.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return [Record(path.stem, path, (1,)) for path in sorted(folder.glob("*.jpg"))]


@torch.no_grad()
def plain(network: torch.nn.Module, records: list[Record]) -> None:
    """What one would write first: photo by photo, blocks 8 and 11 in float32, all threads in one process."""
    for record in records:
        with Image.open(record.image) as photo:
            scale = SIDE / max(photo.size)
            width, height = (round(side * scale / 16) * 16 for side in photo.size)
            pixels = np.asarray(photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        network.forward_intermediates(image, indices=[7, 10], intermediates_only=True)


def ours(reader: FeatureReader, records: list[Record], processes: int) -> None:
    """The loader of the method `frozen`, four taps."""
    for _ in DataLoader(FeatureDataset(records, reader), batch_size=None, num_workers=processes):
        pass


def rows(options: Options) -> Iterator[Ratio]:
    """Photos per second, and what the number type and the processes contribute."""
    with tempfile.TemporaryDirectory() as folder:
        records = records_of(options, Path(folder))
        network = timm.create_model(BACKBONE, pretrained=False, dynamic_img_size=True, num_classes=0).eval()
        readers = {
            compute: FeatureReader(settings.encoder(), settings)
            for compute in ("bfloat16", "float32")
            for settings in [FrozenSettings(BACKBONE, taps=TAPS, side=SIDE, compute=compute)]
        }
        cores = max(1, torch.get_num_threads())
        what = f"{len(records)} photos, {BACKBONE}, {SIDE} px"
        repeats = min(options.repeats, 3)
        for compute, reader in readers.items():
            mine, loop = paired_medians(
                lambda reader=reader: ours(reader, records, cores), lambda: plain(network, records), repeats=repeats
            )
            yield Ratio(
                f"frozen features, {compute}, {cores} processes vs a plain loop over timm in float32",
                loop / mine,
                goal=1.0,
                detail=f"{what}; {len(records) / mine:.2f} and {len(records) / loop:.2f} photos/s; ours: decoding, "
                f"normalising and four taps, the loop: two",
            )
        many, one = paired_medians(
            lambda: ours(readers["bfloat16"], records, cores),
            lambda: ours(readers["bfloat16"], records, 0),
            repeats=repeats,
        )
        yield Ratio(
            f"frozen features, {cores} processes of one thread vs one of {cores}",
            one / many,
            detail=f"{what}; {len(records) / many:.2f} and {len(records) / one:.2f} photos/s, bfloat16",
        )
