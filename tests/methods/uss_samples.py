"""Small tasks of unsupervised features, and a trainer for them."""

from types import SimpleNamespace
from typing import Any

from dhr_lightning.methods.features.collecting import CollectingTask
from tests.task_samples import make_task

VIT = "vit_tiny_patch16_224"
SMALL = {"points": 3, "neighbours": 3, "crop_size": 32}


def make_uss(head: str, backbone: str = VIT, **changes: Any) -> CollectingTask:
    """A task on a tiny backbone, as constructed."""
    options = {
        "lr": 0.01,
        "optimizer": "adamw",
        "head_lr_factor": 1,
        "power": 0.0,
        "flip": True,
        **changes,
    }
    if head == "stego":
        options = {"stego": SMALL, **options}
    else:
        options["head"] = head
    name = "StegoTask" if head == "stego" else "FittedTask"
    return make_task(name, backbone=backbone, class_names=["background", "cat"], **options)


def attach(task: CollectingTask, images: int = 3, **others: Any) -> SimpleNamespace:
    """A trainer whose datamodule has some images."""
    trainer = {name: others.pop(name) for name in ("max_epochs", "world_size") if name in others}
    datamodule = SimpleNamespace(
        **{"records": lambda split: list(range(images)), "seed": 5, "batch_size": 2, "neighbours": None, **others}
    )
    task._trainer = SimpleNamespace(
        **{"datamodule": datamodule, "max_epochs": 2, "world_size": 1, "is_global_zero": True, **trainer}
    )
    return datamodule
