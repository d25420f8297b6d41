"""What the mask step of DHR on stored features reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="rebalance_stored",
    task="dhr_lightning.methods.masks.rebalance_stored.task.RebalanceStoredTask",
    about="masks that stored features and CAMs rebalance once, without a network",
    reads={
        "masks": Read(("mask", "label"), predict=True),
        "features": Read(("features",), predict=True),
        "cam": Read(("cam",), predict=True),
        "uss": Read(("features",), predict=True, optional=True),
    },
    writes={"mask": Write(("train",))},
    fits=False,
    forwards={"mask": "masks"},
    label="DHR",
)
