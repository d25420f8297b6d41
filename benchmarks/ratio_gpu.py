"""What the mask step costs on a GPU: the dense CRF on its lattice, and the step without refinement."""

import logging
from collections.abc import Iterator

import torch
from ratio_base import Options, Ratio
from ratio_crf import load_images, make_case
from ratio_mask_step import Batch, batched, make_batch
from ratio_training import Setup, median_seconds, where
from torch.nn import functional

from dhr_lightning.ops.crf.dense import dense_crf

LATTICE_MS, STEP_MS = 2.0, 0.2

log = logging.getLogger("dhr_lightning")


def rows(options: Options) -> Iterator[Ratio]:
    """Measure on the first GPU; without one there is nothing to measure."""
    if not torch.cuda.is_available():
        log.warning("No GPU here: its rows are left out.")
        return
    yield from measure(Setup(torch.device("cuda")), options)


def measure(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Measure every row with the given sizes."""
    yield from _lattice(setup, options)
    yield from _mask_step(setup, options)


def _lattice(setup: Setup, options: Options) -> Iterator[Ratio]:
    """One CRF of every image, its lattice included."""
    images, source = load_images(options)
    sides = (setup.side, setup.side)
    square = [
        functional.interpolate(image.permute(0, 3, 1, 2), sides, mode="nearest").permute(0, 2, 3, 1) for image in images
    ]
    cases = [make_case(image.contiguous(), 4, seed) for seed, image in enumerate(square)]
    for count in setup.counts:
        chosen = [cases[i % len(cases)] for i in range(count)]
        image = torch.cat([case.image for case in chosen]).to(setup.device)
        score = torch.cat([case.score for case in chosen]).to(setup.device)
        seconds = median_seconds(lambda: dense_crf(image, score), setup, options)  # noqa: B023
        yield Ratio(
            f"dense CRF on the lattice, batch of {count}",
            1e3 * seconds / count,
            LATTICE_MS,
            at_most=True,
            unit="ms",
            detail=f"per image with its lattice, {where(setup)}, C = 4; {source} before",
        )


def _mask_step(setup: Setup, options: Options) -> Iterator[Ratio]:
    """The mask step without refinement, and how near it comes to reading its input once."""
    drawn = make_batch(
        [3] * setup.batch, size=(setup.side, setup.side), grid=setup.grid, deep=setup.grid, channels=(1024, 2048)
    )
    moved = [value.to(setup.device) for value in (drawn.mask, drawn.cam, drawn.uss, *drawn.wss, drawn.tags)]
    batch = Batch(*moved[:3], moved[3:-1], moved[-1])
    seconds = median_seconds(lambda: batched(batch), setup, options)
    detail = (
        f"per image, {where(setup)}, batch of {setup.batch}, 4 classes, features at {setup.grid[0]}x{setup.grid[1]}"
    )
    per_image = 1e3 * seconds / setup.batch
    yield Ratio("mask step without refinement", per_image, STEP_MS, at_most=True, unit="ms", detail=detail)
    block = torch.empty(setup.copied << 20, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(block)
    bandwidth = 2 * block.numel() / median_seconds(lambda: target.copy_(block), setup, options)
    speed = f"{bandwidth / 1e9:.0f} GB/s of a copy"
    read = sum(x.numel() * x.element_size() for x in (batch.mask, batch.cam, batch.uss, *batch.wss))
    yield Ratio(
        "mask step without refinement: share of the memory bandwidth",
        100 * read / seconds / bandwidth,
        unit="%",
        detail=f"input read once, {read / setup.batch / 2**20:.0f} MiB per image, against {speed}",
    )
