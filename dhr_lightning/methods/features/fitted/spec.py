"""What the method `fitted` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="fitted",
    task="dhr_lightning.methods.features.fitted.task.FittedTask",
    about="features of a frozen backbone along their principal axes or whitened, fitted in one pass",
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="Fitted",
)
