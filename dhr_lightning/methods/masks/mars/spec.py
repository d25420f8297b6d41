"""What MARS reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="mars",
    task="dhr_lightning.methods.masks.mars.task.MARSTask",
    about="masks without the regions that unsupervised features call background",
    reads={
        "masks": Read(("mask", "label"), fit=True, predict=True),
        "features": Read(("features",), fit=True, predict=True),
    },
    writes={"mask": Write(("train",))},
    predict_only=("rejected", "threshold", "refine", "crf", "refine_scale", "max_lost_tags", "max_rejected"),
    needs_background=True,
    forwards={"mask": "masks"},
    label="MARS",
)
