"""What CAM reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="cam",
    task="dhr_lightning.methods.seeds.cam.task.CAMTask",
    about="classifier on tags -> class activation maps",
    writes={"cam": Write(("train",))},
    predict_only=("scales", "cam_stride"),
    trains_backbone=True,
    label="CAM",
)
