"""What a segmenter on fixed masks reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="wss",
    task="dhr_lightning.methods.segmenters.wss.task.WSSTask",
    about="segmenter trained on masks -> masks of training images, predictions of all others",
    reads={"masks": Read(("mask", "label"), fit=True, truth=True), "init": Read(optional=True)},
    writes={"mask": Write(("train",)), "prediction": Write(("val", "test"))},
    predict_only=("scales", "test_crf"),
    trains_backbone=True,
    label="Segmenter",
)
