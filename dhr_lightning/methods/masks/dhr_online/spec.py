"""What DHR at every step reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="dhr_online",
    task="dhr_lightning.methods.masks.dhr_online.task.OnlineDHRTask",
    about="segmenter on masks that its own features rebalance at every step, crop by crop -> both",
    reads={
        "masks": Read(("mask", "label"), fit=True, predict=True),
        "features": Read(("features",), fit=True, predict=True, optional=True),
        "init": Read(optional=True),
    },
    writes={"mask": Write(("train",)), "prediction": Write(("val", "test"))},
    predict_only=("scales", "test_crf"),
    forwards={"mask": "masks"},
    trains_backbone=True,
    label="DHR online",
)
