"""What the method `leopart` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="leopart",
    task="dhr_lightning.methods.features.leopart.task.LeopartTask",
    about="a self-supervised ViT tuned by clustering the cells of overlapping views",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="Leopart",
)
