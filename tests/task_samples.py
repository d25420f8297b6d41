"""Tasks as `debug.yaml` configures them, and batches made by hand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.config import resolve
from dhr_lightning.data.sample import Batch, Geometry, GridMaps, collate
from dhr_lightning.methods.base import BaseTask
from dhr_lightning.steps import get_method

METHODS = {
    "CAMTask": "cam",
    "SEAMTask": "seam",
    "SFCTask": "sfc",
    "AdvCAMTask": "advcam",
    "PropagationTask": "crf",
    "IRNTask": "irn",
    "PSATask": "psa",
    "FittedTask": "patches",
    "StegoTask": "stego",
    "CropsTask": "crops",
    "CauseTask": "cause",
    "LeopartTask": "leopart",
    "WSSTask": "wss",
    "MARSSegmenterTask": "mars_wss",
    "MARSTask": "mars",
    "DHRTask": "dhr",
    "OnlineDHRTask": "dhr_online",
    "TagHeadTask": "tag_head",
    "LightTask": "light",
    "RebalanceStoredTask": "rebalance_stored",
    "LightDHRTask": "light_dhr",
}
NAMES = ["background", "cat", "dog", "car", "bus"]


def make_task(
    name: str, *, class_names: list[str] | None = None, method: str | None = None, **changes: Any
) -> BaseTask:
    """A task in the size of `debug.yaml`, in evaluation mode; of the first of its methods, if none is named."""
    method = method or METHODS[name]
    own = [f"methods/{method}.yaml"] if get_method(method).config else []
    config = resolve([*own, "data/microworld.yaml", "debug.yaml"], method=method)
    arguments = {**config["model"].get("init_args", {}), **changes}
    task_class = get_method(method).spec.task_class()
    assert task_class.__name__ == name
    torch.manual_seed(0)
    return task_class(class_names=class_names or NAMES, **arguments).eval()


def predicting(task: BaseTask, *splits: str) -> BaseTask:
    """The task in a run that predicts some splits."""
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(predict_splits=splits, step=task.spec.name))
    return task


def training_loss(task: BaseTask, batch: Batch) -> torch.Tensor:
    """Loss of one training step outside a fit, in training mode."""
    task.log = task.log_dict = lambda *_, **__: None
    return task.train().training_step(batch, 0)


def favour(task: BaseTask, value: int) -> None:
    """Make a class win wherever it is allowed to."""
    task.network.head.register_forward_hook(lambda _, __, logits: logits.index_fill(1, torch.tensor([value]), 100.0))


def make_batch(tags: list[list[int]], sizes: list[tuple[int, int]], *, num_tags: int = 4, offset: int = 1) -> Batch:
    """Whole images of several sizes with tags (class values), arbitrary masks and CAMs of them, and 6 features."""
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
            "inputs": {
                "masks": choice[blocks],
                "debiased": torch.where(blocks == len(choice) - 1, 0, choice[blocks]),
                "features": GridMaps(torch.randn(6, height // 4, width // 4, generator=generator), "sampled"),
                "cam": GridMaps(make_cam(len(values), (height // 4, width // 4), generator), "bilinear"),
            },
        }
        samples.append(sample)
    batch = collate(samples, divisor=16)
    batch["image"] = (batch["pixels"].float() / 255 - 0.5) * batch["valid"][:, None]
    return batch


def make_cam(tags: int, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Smooth CAMs `(tags, *cells)` in [0, 1], in the precision of their files."""
    coarse = torch.rand(tags, 1, 4, 5, generator=generator) ** 2
    maps = torch.nn.functional.interpolate(coarse, cells, mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True)).half().float()


def pick(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some images of a batch on the same canvas, in the order asked for."""

    def chosen(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: chosen(one) for name, one in value.items()}
        return value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]

    return Batch(**{name: chosen(value) for name, value in batch.items()})
