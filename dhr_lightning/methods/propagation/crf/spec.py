"""What the dense CRF reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="crf",
    task="dhr_lightning.methods.propagation.task.PropagationTask",
    about="class activation maps -> masks along image edges, by a dense CRF",
    reads={"cam": Read(("cam",), predict=True)},
    writes={"mask": Write(("train",))},
    predict_only=("background", "background_exponent", "confident", "refine", "crf", "refine_scale"),
    fits=False,
    label="CRF",
)
