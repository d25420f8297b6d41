"""What the mask step costs on a GPU: the dense CRF, the step without it, and training with refreshed masks."""

import functools
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from ratio_base import Options, Ratio
from ratio_crf import load_images, make_case
from ratio_mask_step import TAGS, Batch, batched, make_batch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.losses.pixels import segmentation_loss
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.segmentation import SegmentationTask
from dhr_lightning.methods.segmenters.wss.task import WSSTask
from dhr_lightning.ops.crf.dense import dense_crf
from dhr_lightning.ops.refine import Refiner

PERIODS, REFINE_SCALES = (1, 2, 5), (1.0, 0.5, 0.25)
OVERHEAD, LATTICE_MS, STEP_MS = 1.05, 2.0, 0.2

log = logging.getLogger("dhr_lightning")


@dataclass(frozen=True)
class Setup:
    """Sizes of the measurement; the defaults are those of a usual training run.

    Args:
        device: where it runs.
        side: of the square images.
        counts: images per batch of the CRF.
        batch: images per batch of the mask step and of the training.
        backbone: encoder.
        strides: output strides whose training is timed.
        copied: MiB of the copy that measures the memory bandwidth.
    """

    device: torch.device
    side: int = 512
    counts: tuple[int, ...] = (1, 8, 16)
    batch: int = 16
    backbone: str = "resnet101"
    strides: tuple[int, ...] = (8, 16)
    copied: int = 1024

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the features."""
        return self.side // 8, self.side // 8


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
    yield from _training(setup, options)
    yield from _speed(setup, options)


def median_seconds(function: Callable[[], object], setup: Setup, options: Options) -> float:
    """Median seconds of a function whose work on the device has ended; two runs before do not count."""
    seconds = []
    for repeat in range(options.repeats + 2):
        start = time.perf_counter()
        function()
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        if repeat > 1:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


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
            detail=f"per image with its lattice, {_where(setup)}, C = 4; {source} before",
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
        f"per image, {_where(setup)}, batch of {setup.batch}, 4 classes, features at {setup.grid[0]}x{setup.grid[1]}"
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


def _training(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Training with masks made again between epochs, or at every step, against training on masks that stay."""
    images = training_batch(setup)
    task = task_of(setup)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)

    def step(every_step: bool = False) -> None:
        with _bf16(setup):
            output = task.network(images["image"])
            mask = images["inputs"]["masks"]
            if every_step:
                mask = task.pseudo_masks(images).mask
            loss = segmentation_loss(output.logits, mask, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    plain = median_seconds(step, setup, options)
    about = f"{_where(setup)}, {setup.backbone}, output stride 8, bf16, batch of {setup.batch}"
    exact: Tensor | None = None
    for scale in REFINE_SCALES:
        task.refine_seed = task.refine_final = Refiner("lattice", scale=scale)  # one lattice for both
        task.eval()
        refresh = median_seconds(lambda: _refresh(task, images, setup), setup, options)
        masks = _refresh(task, images, setup)
        exact = masks if exact is None else exact
        same = 100 * float((masks == exact).float().mean())
        detail = f"{about}; CRF at {scale:g} of the size, {same:.2f} % of the labels as at full size; "
        times = f"{1e3 * plain / setup.batch:.1f} ms per image and step, {1e3 * refresh / setup.batch:.1f} ms per mask"
        for period in PERIODS:
            name = f"training with masks made again every {period} epochs, CRF at {scale:g}"
            yield Ratio(name, 1 + refresh / plain / period, OVERHEAD, at_most=True, detail=detail + times)
        task.train()
        slow = median_seconds(lambda: step(every_step=True), setup, options)
        name = f"training with masks made at every step, CRF at {scale:g}"
        yield Ratio(name, slow / plain, OVERHEAD, at_most=True, detail=detail + times)


def _speed(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Images per second and memory of plain training and of DHR's, which trains a classifier on the same features."""
    images = training_batch(setup)
    for stride, half in itertools.product(setup.strides, (False, True)):
        about = f"output stride {stride}, {'bf16' if half else 'float32'}"
        seconds: dict[type[SegmentationTask], float] = {}
        for kind in (WSSTask, DHRTask):
            task = task_of(setup, kind, stride)
            optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)
            step = functools.partial(_step, task, optimizer, images, setup, half=half)
            seconds[kind], memory = median_seconds(step, setup, options), _peak(setup)
            name = f"{'DHR' if kind is DHRTask else 'plain'} training, {about}"
            where = f"{_where(setup)}, {setup.backbone}, batch of {setup.batch}; peak memory {memory}"
            yield Ratio(name, setup.batch / seconds[kind], unit="img/s", detail=where)
        ratio = seconds[DHRTask] / seconds[WSSTask]
        yield Ratio(f"a step of DHR training vs a plain one, {about}", ratio, OVERHEAD, at_most=True)


def _step(
    task: SegmentationTask, optimizer: torch.optim.Optimizer, images: dict[str, Any], setup: Setup, *, half: bool
) -> None:
    with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=half):
        output = task.network(images["image"])
        loss = task.network_loss(output, images["inputs"]["masks"])
        if output.cam is not None:
            loss = loss + functional.multilabel_soft_margin_loss(output.cam.mean((2, 3)), images["tags"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _peak(setup: Setup) -> str:
    """Most memory that was in use on a GPU since the last call."""
    if setup.device.type != "cuda":
        return "not counted here"
    used = torch.cuda.max_memory_allocated(setup.device)
    torch.cuda.reset_peak_memory_stats(setup.device)
    return f"{used / 2**30:.1f} GiB"


def _refresh(task: DHRTask, images: dict[str, Any], setup: Setup) -> Tensor:
    with _bf16(setup):
        return task.pseudo_masks(images).mask


def _bf16(setup: Setup) -> torch.autocast:
    return torch.autocast(setup.device.type, dtype=torch.bfloat16)


def task_of(setup: Setup, kind: type[SegmentationTask] = DHRTask, stride: int = 8) -> Any:
    """A task in training mode that learns all classes of the setup."""
    names = ["background", *(f"class {i}" for i in range(TAGS))]
    return kind(class_names=names, backbone=setup.backbone, output_stride=stride).to(setup.device).train()


def training_batch(setup: Setup) -> dict[str, Any]:
    """Photos of noise in blobs, whose masks and features agree with them."""
    size = (setup.side, setup.side)
    drawn = make_batch([3] * setup.batch, size=size, grid=setup.grid, deep=(2, 2), channels=(1, 1))
    colour = torch.randint(0, 256, (256, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = colour[drawn.mask].permute(0, 3, 1, 2).contiguous()
    image = pixels.float() / 127.5 - 1
    batch = {
        "image": image,
        "pixels": pixels,
        "tags": drawn.tags,
        "valid": torch.ones(setup.batch, *size, dtype=torch.bool),
    }
    inputs = {"masks": drawn.mask.to(setup.device), "features": drawn.uss.to(setup.device)}
    return {**{name: value.to(setup.device) for name, value in batch.items()}, "inputs": inputs}


def _where(setup: Setup) -> str:
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "CPU"
    return f"{device}, {setup.side}x{setup.side}"
