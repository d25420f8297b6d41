"""The dense CRF on the lattice against pydensecrf: results, time, processes, and half the resolution."""

import logging
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from ratio_base import Options, Ratio, paired_medians
from torch import Tensor
from torch.nn import functional

from dhr_lightning.data.microworld.generate import render
from dhr_lightning.errors import DataError
from dhr_lightning.ops.crf.dense import dense_crf, has_pydensecrf
from dhr_lightning.ops.crf.lattice import LatticeCache
from dhr_lightning.ops.crf.pool import close_pool
from dhr_lightning.ops.refine import Refiner

SIZE, GRID = (375, 500), (24, 32)
PHOTOS = 6
CLASSES = (2, 3, 5)
TIMED_CLASSES = 4

log = logging.getLogger("dhr_lightning")


class Case(NamedTuple):
    """One image `(1, H, W, 3)` with the scores `(1, C, H, W)` of its classes."""

    image: Tensor
    score: Tensor


def make_case(image: Tensor, classes: int, seed: int) -> Case:
    """Cut the image by lightness into classes on a coarse grid and enlarge them with noise, as heatmaps are.

    A CRF then changes about 4 % of the labels, most of them at edges.
    """
    generator = torch.Generator().manual_seed(seed)
    light = functional.interpolate(image.permute(0, 3, 1, 2).float().mean(1, keepdim=True), GRID, mode="area")
    light = functional.avg_pool2d(functional.pad(light, (2,) * 4, mode="replicate"), 5, 1).flatten()
    label = light.argsort().argsort() * classes // light.numel()  # classes of equal size
    coarse = functional.one_hot(label, classes).T.reshape(1, classes, *GRID).float()
    size = (int(image.shape[1]), int(image.shape[2]))
    smooth = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return Case(image, (5 * smooth + torch.randn(smooth.shape, generator=generator)).softmax(1))


def load_images(options: Options) -> tuple[list[Tensor], str]:
    """Read photos or draw pictures, each `(1, 375, 500, 3)`; returns what they are in words, too."""
    if options.photos is None:
        pictures = [Image.fromarray(render(0, False, index).image) for index in range(PHOTOS)]
        source = f"{PHOTOS} drawn images, enlarged"
    else:
        files = sorted(file for file in options.photos.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
        if len(files) < PHOTOS:
            raise DataError(f"{options.photos} holds {len(files)} JPEG photos. Name a folder with at least {PHOTOS}.")
        pictures = [Image.open(file).convert("RGB") for file in files[:: len(files) // PHOTOS][:PHOTOS]]
        source = f"{PHOTOS} photos"
    resized = [picture.resize(SIZE[::-1], Image.Resampling.BICUBIC) for picture in pictures]
    return [torch.from_numpy(np.array(picture))[None] for picture in resized], f"{source}, {SIZE[0]}x{SIZE[1]}"


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of equal labels in percent."""
    return 100.0 * float((first.argmax(1) == second.argmax(1)).double().mean())


def rows(options: Options) -> Iterator[Ratio]:
    """Compare results and times; torch runs on one thread meanwhile, as pydensecrf does."""
    images, source = load_images(options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if has_pydensecrf():
            yield from _results(images, source)
            yield from _times(images, source, options)
            yield _pool(images, source, options)
        else:
            log.warning("pydensecrf is not installed: only the resolution of the dense CRF is measured.")
        yield from _half(images, source, options)
    finally:
        torch.set_num_threads(threads)
        close_pool()


def _results(images: list[Tensor], source: str) -> Iterator[Ratio]:
    """Labels and probabilities of both implementations."""
    equal, distance, changed = [], [], []
    for seed, image in enumerate(images):
        for classes in CLASSES:
            case = make_case(image, classes, seed)
            expected = dense_crf(*case, backend="pydensecrf")
            result = dense_crf(*case)
            equal.append(agreement(result, expected))
            distance.append(float((result - expected).abs().mean()))
            changed.append(100.0 - agreement(case.score, expected))
    detail = f"{source}, C in {CLASSES}; least {min(equal):.4f} %; the CRF changes {statistics.median(changed):.1f} %"
    yield Ratio("dense CRF labels: lattice = pydensecrf", statistics.median(equal), 99.99, unit="%", detail=detail)
    detail = f"mean over pixels, largest of {len(distance)} cases; median {statistics.median(distance):.1e}"
    yield Ratio("dense CRF probabilities: |difference|", max(distance), 1e-4, at_most=True, unit="", detail=detail)


def _times(images: list[Tensor], source: str, options: Options) -> Iterator[Ratio]:
    """Seconds per image; pydensecrf builds its lattices anew in every call."""
    cases = [make_case(image, TIMED_CLASSES, seed) for seed, image in enumerate(images[:2])]

    def run(backend: str, calls: int) -> None:
        for case in cases:
            cache = LatticeCache()
            for _ in range(calls):
                dense_crf(*case, backend=backend, cache=cache)

    for calls, goal in ((2, 1.0), (1, None)):
        slow, fast = paired_medians(
            lambda calls=calls: run("pydensecrf", calls),
            lambda calls=calls: run("lattice", calls),
            repeats=options.repeats,
        )
        name = "seed and final CRF of an image on one lattice" if calls == 2 else "one CRF of an image"
        yield Ratio(f"{name}: lattice vs pydensecrf", slow / fast, goal, detail=_detail(slow, fast, len(cases), source))


def _pool(images: list[Tensor], source: str, options: Options) -> Ratio:
    """Two processes of pydensecrf against one, with mirror images: small batches leave one of them idle at the end."""
    images = [*images, *(image.flip(2) for image in images)]
    cases = [make_case(image, TIMED_CLASSES, seed) for seed, image in enumerate(images)]
    batch = Case(torch.cat([case.image for case in cases]), torch.cat([case.score for case in cases]))
    slow, fast = paired_medians(
        lambda: dense_crf(*batch, backend="pydensecrf"),
        lambda: dense_crf(*batch, backend="pydensecrf", workers=2),
        repeats=options.repeats,
    )
    return Ratio(
        "pydensecrf: 2 processes vs 1",
        slow / fast,
        1.7,
        detail=_detail(slow, fast, len(images), f"batch of {len(images)} with mirror images, {source}"),
    )


def _half(images: list[Tensor], source: str, options: Options) -> Iterator[Ratio]:
    """Half the width and height, kernels as they are, result enlarged."""
    cases = [make_case(image, TIMED_CLASSES, seed) for seed, image in enumerate(images)]
    backend = Refiner().resolve(torch.device("cpu"))

    def refine(case: Case, scale: float) -> Tensor:
        present = torch.ones(1, TIMED_CLASSES, dtype=torch.bool)
        image = case.image.permute(0, 3, 1, 2)
        return Refiner(backend, scale=scale)(image, case.score, present)  # a new one has no lattice yet

    some = cases[:2]
    slow, fast = paired_medians(
        lambda: [refine(case, 1.0) for case in some],
        lambda: [refine(case, 0.5) for case in some],
        repeats=options.repeats,
    )
    name = f"dense CRF ({backend}) at half the resolution vs full"
    yield Ratio(name, slow / fast, 2.5, detail=_detail(slow, fast, len(some), source))
    equal = [agreement(refine(case, 0.5), refine(case, 1.0)) for case in cases]
    plain = [agreement(case.score, refine(case, 1.0)) for case in cases]
    detail = f"{source}, C = {TIMED_CLASSES}; least {min(equal):.2f} %; without CRF {statistics.median(plain):.2f} %"
    yield Ratio(f"{name}: equal labels", statistics.median(equal), 97.5, unit="%", detail=detail)


def _detail(slow: float, fast: float, count: int, source: str) -> str:
    return (
        f"{source}, C = {TIMED_CLASSES}, 1 thread; {1000 * slow / count:.0f} and {1000 * fast / count:.0f} ms per image"
    )
