"""What SFC reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="sfc",
    task="dhr_lightning.methods.seeds.sfc.task.SFCTask",
    about="classifier whose maps agree with class prototypes -> class activation maps",
    writes={"cam": Write(("train",))},
    predict_only=("scales", "cam_stride", "proto"),
    trains_backbone=True,
    label="SFC",
)
