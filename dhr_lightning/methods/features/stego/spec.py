"""What the method `stego` reads and writes."""

from dhr_lightning.steps import Read, StepSpec, Write

SPEC = StepSpec(
    name="stego",
    task="dhr_lightning.methods.features.stego.task.StegoTask",
    about="STEGO head on frozen features of a self-supervised ViT",
    reads={"crops": Read(("crops",), whole=True, optional=True)},
    writes={"features": Write(("train",), on_demand=("val", "test"))},
    predict_only=("scales", "flip"),
    trains_backbone=True,
    label="STEGO",
)
