"""Tasks as `debug.yaml` configures them, and batches made by hand."""

from typing import Any

import torch

from dhr_lightning.cli import TASKS
from dhr_lightning.config import resolve
from dhr_lightning.data.sample import Batch, Geometry, collate
from dhr_lightning.methods.base import BaseTask

FILES = {
    "CAMTask": "stage1_cam.yaml",
    "USSTask": "stage2_filterbank.yaml",
    "WSSTask": "stage3_base.yaml",
    "MARSTask": "stage3_mars.yaml",
    "DHRTask": "stage3_dhr.yaml",
}
NAMES = ["background", "cat", "dog", "car", "bus"]


def make_task(name: str, *, class_names: list[str] | None = None, **changes: Any) -> BaseTask:
    """A task in the size of `debug.yaml`, in evaluation mode."""
    config = resolve([FILES[name], "data/microworld.yaml", "debug.yaml"])
    arguments = {**config["model"].get("init_args", {}), **changes}
    (task_class,) = (task for task in TASKS if task.__name__ == name)
    torch.manual_seed(0)
    return task_class(class_names=class_names or NAMES, **arguments).eval()


def training_loss(task: BaseTask, batch: Batch) -> torch.Tensor:
    """Loss of one training step outside a fit, in training mode."""
    task.log = task.log_dict = lambda *_, **__: None
    return task.train().training_step(batch, 0)


def favour(task: BaseTask, value: int) -> None:
    """Make a class win wherever it is allowed to."""
    task.network.head.register_forward_hook(lambda _, __, logits: logits.index_fill(1, torch.tensor([value]), 100.0))


def make_batch(tags: list[list[int]], sizes: list[tuple[int, int]], *, num_tags: int = 4, offset: int = 1) -> Batch:
    """Whole images of several sizes with tags (class values), arbitrary masks of them, and features of 6 channels."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index, (values, (height, width)) in enumerate(zip(tags, sizes, strict=True)):
        multi_hot = torch.zeros(num_tags)
        multi_hot[[value - offset for value in values]] = 1
        choice = torch.tensor(([0] if offset else []) + values)
        cells = torch.randint(len(choice), (1, 1, height // 8, width // 8), generator=generator)
        blocks = torch.nn.functional.interpolate(cells.float(), (height, width)).long()[0, 0]
        sample = {
            "id": f"image_{index}",
            "pixels": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
            "valid": torch.ones(height, width, dtype=torch.bool),
            "tags": multi_hot,
            "geometry": Geometry((0, 0, width, height), (0, 0, width, height), (1.0, 1.0), False, (height, width)),
            "mask": choice[blocks],
            "uss": torch.randn(6, height // 4, width // 4, generator=generator),
        }
        samples.append(sample)
    batch = collate(samples, divisor=16)
    batch["image"] = (batch["pixels"].float() / 255 - 0.5) * batch["valid"][:, None]
    return batch
