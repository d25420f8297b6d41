"""What AdvCAM reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="advcam",
    task="dhr_lightning.methods.seeds.advcam.task.AdvCAMTask",
    about="classifier, and images that climb the score of their class -> class activation maps",
    writes={"cam": Write(("train",))},
    predict_only=("scales", "cam_stride", "climb"),
    neutral=("workers", "at_once"),
    trains_backbone=True,
    label="AdvCAM",
)
