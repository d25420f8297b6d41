"""What PAMR reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="pamr",
    task="dhr_lightning.methods.propagation.task.PropagationTask",
    about="class activation maps -> masks along image edges, by pixel-adaptive refinement",
    reads={"cam": Read(("cam",), predict=True)},
    writes={"mask": Write(("train",))},
    predict_only=("background", "background_exponent", "confident", "refine", "crf", "refine_scale"),
    fits=False,
    label="PAMR",
)
