"""What the tag head reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="tag_head",
    task="dhr_lightning.methods.seeds.tag_head.task.TagHeadTask",
    about="light classifier on stored features and tags -> class activation maps",
    reads={"features": Read(("features",), fit=True, predict=True, splits=("train", "val", "test"))},
    writes={"cam": Write(("train",))},
    label="CAM",
)
