"""What DHR reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="dhr",
    task="dhr_lightning.methods.masks.dhr.task.DHRTask",
    about="segmenter and masks that its own features rebalance between epochs -> both",
    reads={
        "masks": Read(("mask", "label"), refresh=True),
        "features": Read(("features",), refresh=True, optional=True),
        "init": Read(optional=True),
    },
    writes={"mask": Write(("train",), rounds=True), "prediction": Write(("val", "test"))},
    predict_only=("scales", "test_crf"),
    forwards={"mask": "masks"},
    trains_backbone=True,
    label="DHR",
)
