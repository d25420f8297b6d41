"""What DHR training costs beside plain training: masks made again, images per second, memory."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from ratio_base import Options, Ratio, paired_medians, peak_growth
from ratio_mask_step import TAGS, make_batch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.losses.pixels import segmentation_loss
from dhr_lightning.methods.masks.dhr.task import DHRTask
from dhr_lightning.methods.segmentation import SegmentationTask
from dhr_lightning.methods.segmenters.wss.task import WSSTask
from dhr_lightning.ops.bfloat16 import pays
from dhr_lightning.ops.refine import Refiner

PERIODS, REFINE_SCALES = (1, 2, 5), (1.0, 0.5, 0.25)
OVERHEAD = 1.05
KINDS: dict[str, type[SegmentationTask]] = {"plain": WSSTask, "DHR": DHRTask}


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
    """Measure on a GPU if there is one, else on the processor with a smaller network."""
    small = Setup(torch.device("cpu"), side=256, batch=4, backbone="resnet18", strides=(16,))
    yield from measure(Setup(torch.device("cuda")) if torch.cuda.is_available() else small, options)


def measure(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Measure every row with the given sizes."""
    yield from _refreshed(setup, options)
    yield from _speed(setup, options)


def median_seconds(function: Callable[[], object], setup: Setup, options: Options) -> float:
    """Median seconds of a function whose work on the device has ended; two runs before do not count."""
    seconds, finished = [], _finished(function, setup)
    for repeat in range(options.repeats + 2):
        start = time.perf_counter()
        finished()
        if repeat > 1:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _finished(function: Callable[[], object], setup: Setup) -> Callable[[], None]:
    """A function that ends when the device has done its work."""

    def finished() -> None:
        function()
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)

    return finished


def _refreshed(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Training with masks made again between epochs, or at every step, against training on masks that stay."""
    images, task = training_batch(setup), task_of(setup)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)
    half = pays(setup.device)
    plain = _finished(functools.partial(_step_on_masks, task, optimizer, images), setup)
    online = _finished(functools.partial(_step_on_masks, task, optimizer, images, every_step=True), setup)
    refresh = _finished(functools.partial(_refresh, task, images), setup)
    about = f"{where(setup)}, {setup.backbone}, output stride 8, {'bf16' if half else 'float32'}, {setup.batch} images"
    exact: Tensor | None = None
    for scale in REFINE_SCALES:
        task.refine_seed = task.refine_final = Refiner("lattice", scale=scale)  # one lattice for both
        masks = _refresh(task, images)
        exact = masks if exact is None else exact
        same = 100 * float((masks == exact).float().mean())
        mask_s, step_s = paired_medians(refresh, plain, repeats=options.repeats)
        detail = f"{about}; CRF at {scale:g} of the size, {same:.2f} % of the labels as at full size; "
        times = f"{1e3 * step_s / setup.batch:.1f} ms per image and step, {1e3 * mask_s / setup.batch:.1f} ms per mask"
        for period in PERIODS:
            name = f"training with masks made again every {period} epochs, CRF at {scale:g}"
            yield Ratio(name, 1 + mask_s / step_s / period, OVERHEAD, at_most=True, detail=detail + times)
        slow, step_s = paired_medians(online, plain, repeats=options.repeats)
        name = f"training with masks made at every step, CRF at {scale:g}"
        yield Ratio(name, slow / step_s, OVERHEAD, at_most=True, detail=detail + times)


def _step_on_masks(
    task: DHRTask, optimizer: torch.optim.Optimizer, images: dict[str, Any], *, every_step: bool = False
) -> None:
    """Train on the masks of the batch, or on those that DHR makes of the current features."""
    with _bf16(task.device):
        output = task.network(images["image"])
        mask = task.pseudo_masks(images).mask if every_step else images["inputs"]["masks"]
        loss = segmentation_loss(output.logits, mask, ignore_index=255)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _speed(setup: Setup, options: Options) -> Iterator[Ratio]:
    """Images per second and memory of plain training and of DHR's, which trains a classifier on the same features."""
    types = (False, True) if pays(setup.device) else (False,)
    for stride, half in itertools.product(setup.strides, types):
        about = f"output stride {stride}, {'bf16' if half else 'float32'}"
        steps = {kind: training_step(setup, kind, stride, half) for kind in KINDS}
        plain, ours = paired_medians(
            _finished(steps["plain"], setup), _finished(steps["DHR"], setup), repeats=options.repeats
        )
        del steps  # their weights would count in what follows
        for kind, seconds in {"plain": plain, "DHR": ours}.items():
            detail = f"{where(setup)}, {setup.backbone}, batch of {setup.batch}; {_memory(setup, kind, stride, half)}"
            yield Ratio(f"{kind} training, {about}", setup.batch / seconds, unit="img/s", detail=detail)
        name = f"a step of DHR training vs a plain one, {about}"
        yield Ratio(name, ours / plain, OVERHEAD, at_most=True, detail=f"{where(setup)}, {setup.backbone}")


def training_step(setup: Setup, kind: str, stride: int, half: bool) -> Callable[[], None]:
    """A whole step of plain or DHR training: network, losses, gradients, optimiser."""
    images, task = training_batch(setup), task_of(setup, KINDS[kind], stride)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)
    return functools.partial(_step, task, optimizer, images, setup, half=half)


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


def _memory(setup: Setup, kind: str, stride: int, half: bool) -> str:
    """Most memory that two steps take: allocated on a GPU, else of a fresh process beyond its libraries."""
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
        _two_steps(setup, kind, stride, half)
        return f"at most {torch.cuda.max_memory_allocated(setup.device) / 2**30:.1f} GiB allocated"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return f"at most {pool.submit(_growth, setup, kind, stride, half).result():.0f} MiB of a fresh process"


def _growth(setup: Setup, kind: str, stride: int, half: bool) -> float:
    return peak_growth(lambda: _two_steps(setup, kind, stride, half))


def _two_steps(setup: Setup, kind: str, stride: int, half: bool) -> None:
    step = training_step(setup, kind, stride, half)
    step()
    step()  # the first one has no momentum yet


def _refresh(task: DHRTask, images: dict[str, Any]) -> Tensor:
    """Masks of the batch as a refresh between epochs makes them."""
    task.eval()
    with _bf16(task.device):
        masks = task.pseudo_masks(images).mask
    task.train()
    return masks


def _bf16(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=pays(device))


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


def where(setup: Setup) -> str:
    """The device and the size of the images, for a reader."""
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "CPU"
    return f"{device}, {setup.side}x{setup.side}"
