"""What the method `frozen` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="frozen",
    task="dhr_lightning.methods.features.frozen.task.FrozenTask",
    about="dense features of a frozen backbone, several layers at once, written for every image",
    writes={"features": Write(("train", "val", "test"))},
    neutral=("workers", "processes"),
    fits=False,
    trains_backbone=True,
    label="Frozen features",
)
