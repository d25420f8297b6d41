"""What PSA reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="psa",
    task="dhr_lightning.methods.propagation.psa.task.PSATask",
    about="class activation maps -> masks, by a walk along learnt similarity of pixels",
    reads={"cam": Read(("cam",), refresh=True, predict=True), "init": Read(optional=True, follows="cam")},
    writes={"mask": Write(("train",)), "boundary": Write(("train",))},
    predict_only=("radius", "beta", "steps", "background_exponent"),
    needs_background=True,
    trains_backbone=True,
    label="PSA",
)
