"""What the mask step of DHR alone reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="rebalance",
    task="dhr_lightning.methods.masks.rebalance.task.RebalanceTask",
    about="masks that the features of a trained classifier rebalance once, without a segmenter",
    reads={
        "masks": Read(("mask", "label"), predict=True),
        "features": Read(("features",), predict=True, optional=True),
        "init": Read(),
    },
    writes={"mask": Write(("train",))},
    fits=False,
    forwards={"mask": "masks"},
    label="DHR masks",
)
