"""A mask refresh whose network works on the next batch while masks are refined, against one after the other."""

from collections.abc import Iterator
from typing import Any

import torch
from ratio_base import Options, Ratio, paired_medians
from ratio_training import Setup, task_of, training_batch
from torch import Tensor

from dhr_lightning.callbacks.overlap import finished_behind
from dhr_lightning.methods.masks.dhr.task import DHRTask

BATCHES = 4


def rows(options: Options) -> Iterator[Ratio]:
    """Measure on a GPU if there is one, else on the processor with a smaller network."""
    if torch.cuda.is_available():
        yield measure(Setup(torch.device("cuda"), batch=8), options)
    else:
        yield measure(Setup(torch.device("cpu"), side=256, batch=4, backbone="resnet18"), options)


@torch.no_grad()
def measure(setup: Setup, options: Options) -> Ratio:
    """Seconds of a refresh of a few batches in both ways, whose masks must be the same."""
    batch, task = training_batch(setup), task_of(setup).eval()

    def both(overlap: bool) -> list[Tensor]:
        begun = (task.mask_inputs(batch) for _ in range(BATCHES))
        if overlap:
            return list(finished_behind(begun, lambda inputs: _masks(task, inputs)))
        return [_masks(task, inputs) for inputs in begun]

    same = all(torch.equal(one, other) for one, other in zip(both(True), both(False), strict=True))
    if not same:
        raise AssertionError("The masks of the two ways differ.")
    ours, plain = paired_medians(lambda: both(True), lambda: both(False), repeats=options.repeats)
    refiner = task.refine_final.describe(setup.device)
    detail = (
        f"{BATCHES} batches of {setup.batch}, {setup.side}x{setup.side}, {setup.backbone} on {setup.device}, {refiner}"
    )
    return Ratio(
        "mask refresh: network and refinement at the same time vs one after the other",
        plain / ours,
        goal=1.0,
        detail=f"{detail}; {ours:.2f} s vs {plain:.2f} s, equal masks",
    )


@torch.no_grad()
def _masks(task: DHRTask, inputs: Any) -> Tensor:
    return task.rebalanced(inputs).mask.cpu()
