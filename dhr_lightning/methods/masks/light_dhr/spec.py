"""What the light segmenter reads and writes that rebalances its own masks."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="light_dhr",
    task="dhr_lightning.methods.masks.light_dhr.task.LightDHRTask",
    about="light segmenter on stored features and masks that it rebalances between epochs -> both",
    reads={
        "masks": Read(("mask", "label"), refresh=True),
        "features": Read(("features",), fit=True, predict=True, refresh=True, splits=("train", "val", "test")),
        "cam": Read(("cam",), refresh=True),
        "tagger": Read(predict=True, optional=True),
    },
    writes={"mask": Write(("train",), rounds=True), "prediction": Write(("val", "test"))},
    predict_only=("flip", "test_crf", "gate"),
    forwards={"mask": "masks"},
    label="DHR",
)
