"""What the method `patches` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="patches",
    task="dhr_lightning.methods.features.fitted.task.FittedTask",
    about="whitened patches and a soft cluster code, fitted in two passes",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="Patches",
)
