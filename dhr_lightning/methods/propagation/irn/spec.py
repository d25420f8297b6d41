"""What IRNet reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="irn",
    task="dhr_lightning.methods.propagation.irn.task.IRNTask",
    about="class activation maps -> masks, by a walk that learnt boundaries stop",
    reads={"cam": Read(("cam",), refresh=True, predict=True), "init": Read(optional=True, follows="cam")},
    writes={"mask": Write(("train",)), "boundary": Write(("train",))},
    predict_only=("radius", "beta", "steps", "background"),
    needs_background=True,
    trains_backbone=True,
    label="IRNet",
)
