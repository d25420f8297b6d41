"""When the memory of an accelerator runs out while something is predicted: one image at a time instead."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch

T = TypeVar("T")
R = TypeVar("R")
Artifacts = dict[str, list[Any]]  # by kind, in the order of the images
Step = TypeVar("Step", bound=Callable[..., Artifacts])
log = logging.getLogger("dhr_lightning")


def within_memory(compute: Callable[[T], R], inputs: T) -> R | None:
    """`compute(inputs)`, or None if the memory of the accelerator ran out; nothing else is caught."""
    try:
        return compute(inputs)
    except torch.cuda.OutOfMemoryError:
        pass  # the error holds on to the tensors of the attempt until here
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def in_pieces(compute: Callable[[Batch], T], batch: Batch) -> Iterator[tuple[Batch, T]]:
    """What `compute` gives for a batch; where its memory runs out, what it gives for one image after the other.

    Args:
        compute: anything whose result for an image does not depend on the others of its batch.
        batch: whole images.

    Yields:
        The batch with its result, or each image as a batch of one with its own. An image that does not fit alone
        raises what torch raises.
    """
    images = len(batch["id"])
    found = within_memory(compute, batch) if images > 1 else compute(batch)
    if found is not None:
        yield batch, found
        return
    log.warning("out of memory for %d images together: one at a time", images)
    for one in single_images(batch):
        yield one, compute(one)


def single_images(batch: Batch) -> list[Batch]:
    """Every image of a batch as a batch of one, on the same canvas, with CAMs of its own tags alone."""
    images = [cast(Batch, _row(batch, row)) for row in range(len(batch["id"]))]
    most = _tags(batch)
    for image in images:
        for port, maps in image.get("inputs", {}).items():  # CAMs are those with a channel for every tag of an image
            if maps.dim() == 4 and maps.shape[1:] == (most, *batch["pixels"].shape[-2:]):
                image["inputs"][port] = maps[:, : _tags(image)]
    return images


def _tags(batch: Batch) -> int:
    """The most tags that an image has, at least 1."""
    return max(1, int((batch["tags"] > 0).sum(1).max()))


def _row(value: object, row: int) -> object:
    if isinstance(value, Mapping):
        return {name: _row(one, row) for name, one in value.items()}
    return value[row : row + 1] if isinstance(value, Tensor | list) else value


def one_by_one_if_needed(predict_step: Step) -> Step:
    """A `predict_step` that predicts images one at a time where a batch of them does not fit into memory.

    What it gives for an image must not depend on which images are together, as for every task here.
    """

    @functools.wraps(predict_step)
    def predict(task: object, batch: Batch, *args: int, **kwargs: int) -> Artifacts:
        result: Artifacts = {}
        for _, found in in_pieces(lambda one: predict_step(task, one, *args, **kwargs), batch):
            for kind, values in found.items():
                result.setdefault(kind, []).extend(values)
        return result

    return cast(Step, predict)
