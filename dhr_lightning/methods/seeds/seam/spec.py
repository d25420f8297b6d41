"""What SEAM reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="seam",
    task="dhr_lightning.methods.seeds.seam.task.SEAMTask",
    about="classifier equivariant to scale, with pixel correlation -> class activation maps",
    writes={"cam": Write(("train",))},
    predict_only=("scales", "cam_stride"),
    trains_backbone=True,
    label="SEAM",
)
