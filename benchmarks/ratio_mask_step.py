"""The batched mask step, without its refinements, against a plain loop over images; and what it needs of memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from plain_mask_step import plain_mask_step
from ratio_base import Options, Ratio, paired_medians, peak_growth
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops.cam import gather_classes
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.profiles import PROFILES
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import RebalanceResult, rebalance

TAGS, DEPTH = 20, 90
SIZE, GRID = (375, 500), (27, 36)
STRIDE16, STRIDE8 = (24, 32), (47, 63)
CHANNELS = (1024, 2048)


class Batch(NamedTuple):
    """Images of one size with features, class 0 being the background."""

    mask: Tensor  # (B, H, W)
    cam: Tensor  # (B, T, h, w)
    uss: Tensor  # (B, D, h, w)
    wss: list[Tensor]  # (B, D, h, w) per level
    tags: Tensor  # (B, T)


def make_batch(
    tagged: list[int], *, size: tuple[int, int], grid: tuple[int, int], deep: tuple[int, int], channels: tuple[int, ...]
) -> Batch:
    """Draw images with `tagged[b]` classes in blobs, of which the last has vanished from the mask.

    Unsupervised features of the tagged classes are alike.
    """
    generator = torch.Generator().manual_seed(len(tagged))
    tags = torch.zeros(len(tagged), TAGS, dtype=torch.long)
    for b, count in enumerate(tagged):
        tags[b, torch.randperm(TAGS, generator=generator)[:count]] = 1
    field = torch.rand(len(tagged), TAGS + 1, 4, 5, generator=generator)
    field[:, 1:] = torch.where(tags[..., None, None] > 0, field[:, 1:], -1.0)

    def classes(at: tuple[int, int]) -> Tensor:
        return functional.interpolate(field, at, mode="bilinear", align_corners=False).argmax(1)

    def features(depth: int, at: tuple[int, int], alike: float) -> Tensor:
        base = torch.randn(TAGS + 1, depth, generator=generator)
        base[1:] = alike * base[1] + (1 - alike) * base[1:]
        cells = base[classes(at)].permute(0, 3, 1, 2)
        return (cells + 0.3 * torch.randn(cells.shape, generator=generator)).contiguous()

    cam = torch.rand(len(tagged), TAGS, *STRIDE16, generator=generator) ** 2 * tags[..., None, None]
    ignored = torch.rand(len(tagged), *size, generator=generator) < 0.02
    last = TAGS - tags.flip(1).argmax(1)[:, None, None]
    mask = classes(size).masked_fill(ignored, 255)
    mask = mask.masked_fill(mask == last, 0)
    return Batch(mask, cam, features(DEPTH, grid, 0.7), [features(d, deep, 0.2) for d in channels], tags)


def batched(batch: Batch, profile: str = "default") -> RebalanceResult:
    """Run the package's mask step, without refinements."""
    classes = ImageClasses.from_tags(batch.tags, offset=1, include_background=True)
    cam = gather_classes(batch.cam, classes)
    count, height, width = batch.mask.shape
    # read by refinements only
    image = torch.zeros(count, 3, height, width, dtype=torch.uint8, device=batch.mask.device)
    inputs = RebalanceInputs(image, batch.mask, cam, classes, batch.uss, batch.wss)
    return rebalance(inputs, settings=PROFILES[profile])


def plain(batch: Batch, profile: str = "default") -> list[tuple[Tensor, Tensor, list[int]]]:
    """Run the loop over images."""
    results = []
    for b, row in enumerate(batch.tags):
        tag = row.nonzero()[:, 0]
        values = (tag + 1).tolist()
        maps = (batch.mask[b], batch.cam[b, tag], batch.uss[b], [level[b] for level in batch.wss])
        results.append(plain_mask_step(*maps, values, PROFILES[profile]))
    return results


def difference(batch: Batch, profile: str) -> tuple[float, float]:
    """Largest difference of the heatmaps, and the share of pixels with another label."""
    ours = batched(batch, profile)
    assert ours.heatmaps is not None
    largest, unequal = 0.0, 0.0
    for b, (mask, heat, classes) in enumerate(plain(batch, profile)):
        keys = [0, *(batch.tags[b].nonzero()[:, 0] + 1).tolist()]
        rows = [keys.index(value) for value in classes]
        largest = max(largest, float((ours.heatmaps[b, rows] - heat).abs().max()))
        unequal = max(unequal, float((ours.mask[b] != mask).float().mean()))
    return largest, unequal


def rows(options: Options) -> Iterator[Ratio]:
    """Compare with the loop, after a proof that both give the same, and report the memory of one image."""
    torch.ones(8_000_000)  # a freed large block teaches the allocator to keep pages, as in any running program
    for profile, deep, (tagged, goal) in product(PROFILES, (STRIDE16, STRIDE8), (([2], 5.0), ([1, 2, 3, 4] * 2, 3.0))):
        batch = make_batch(tagged, size=SIZE, grid=GRID, deep=deep, channels=CHANNELS)
        yield _row(batch, profile, max(tagged), goal, options)
    if sys.platform == "linux":
        yield memory_row()


def _row(batch: Batch, profile: str, most: int, goal: float, options: Options) -> Ratio:
    largest, unequal = difference(batch, profile)
    if largest > 1e-3 or unequal > 1e-3:  # min-max of a flat plan magnifies rounding
        raise RuntimeError(f"Expected equal results, but heatmaps differ by {largest} and labels by {unequal:.2%}.")
    slow, fast = paired_medians(lambda: plain(batch, profile), lambda: batched(batch, profile), repeats=options.repeats)
    count, (height, width) = len(batch.mask), batch.wss[0].shape[2:]
    return Ratio(
        f"mask step without refinement, `{profile}`, batch of {count}, features {height}x{width}, "
        "vs a loop over images",
        slow / fast,
        goal,
        detail=f"{SIZE[0]}x{SIZE[1]}, {DEPTH} channels at {GRID[0]}x{GRID[1]} and {CHANNELS[0]}+{CHANNELS[1]} at "
        f"{height}x{width}, up to {most} tags; {slow / count * 1e3:.0f} and {fast / count * 1e3:.0f} ms per image; "
        f"heatmaps differ by {largest:.0e}, labels on {unequal:.3%} of pixels",
    )


def memory_row() -> Ratio:
    """Working memory of the step, from the resident set of a fresh process that returns every freed block."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    mebibytes = float(done.stdout)
    return Ratio(
        "peak memory of the mask step per image, beyond its inputs",
        mebibytes,
        unit="MiB",
        detail="512x512, 8 classes, features 90@64x64 and 1024+2048@64x64 (48 MiB per image, not counted); batch of 4, "
        "resident set of a fresh process",
    )


def peak_mebibytes(count: int = 4) -> float:
    """Growth of the resident set during one step, per image."""
    batch = make_batch([7] * count, size=(512, 512), grid=(64, 64), deep=(64, 64), channels=CHANNELS)
    small = make_batch([7], size=(64, 64), grid=(8, 8), deep=(8, 8), channels=(8, 8))
    batched(small)  # libraries load on first use
    return peak_growth(lambda: batched(batch)) / count


if __name__ == "__main__":
    sys.stdout.write(f"{peak_mebibytes()}\n")
