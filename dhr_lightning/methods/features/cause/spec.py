"""What the method `cause` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="cause",
    task="dhr_lightning.methods.features.cause.task.CauseTask",
    about="codebook and concept decoder of CAUSE on frozen features of a self-supervised ViT",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="CAUSE",
)
