"""What the light segmenter reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="light",
    task="dhr_lightning.methods.segmenters.light.task.LightTask",
    about="light segmenter on stored features, trained on masks -> masks of training images, predictions of all others",
    reads={
        "masks": Read(("mask", "label"), fit=True, truth=True),
        "features": Read(("features",), fit=True, predict=True, splits=("train", "val", "test")),
        "tagger": Read(predict=True, optional=True),
    },
    writes={"mask": Write((), on_demand=("train",)), "prediction": Write(("val", "test"))},
    predict_only=("flip", "test_crf", "gate"),
    label="Light",
)
