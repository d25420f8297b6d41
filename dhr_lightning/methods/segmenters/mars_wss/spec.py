"""What the segmenter of MARS reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="mars_wss",
    task="dhr_lightning.methods.segmenters.mars_wss.task.MARSSegmenterTask",
    about="segmenter trained on masks whose rejected pixels its own average completes",
    reads={
        "masks": Read(("mask", "label"), fit=True),
        "debiased": Read(("mask", "label"), fit=True),
        "init": Read(optional=True),
    },
    writes={"mask": Write(("train",)), "prediction": Write(("val", "test"))},
    predict_only=("scales", "test_crf"),
    needs_background=True,
    trains_backbone=True,
    label="MARS segmenter",
)
