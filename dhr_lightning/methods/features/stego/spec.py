"""What the method `stego` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="stego",
    task="dhr_lightning.methods.features.task.USSTask",
    about="STEGO head on frozen features of a self-supervised ViT",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="STEGO",
)
