"""What the method `encoder` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="encoder",
    task="dhr_lightning.methods.features.task.USSTask",
    about="map of a pretrained encoder along its principal axes, fitted in one pass",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="Encoder",
)
