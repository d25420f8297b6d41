"""What the method `crops` reads and writes."""

from dhr_lightning.steps import StepSpec, Write

SPEC = StepSpec(
    name="crops",
    task="dhr_lightning.methods.features.crops.task.CropsTask",
    about="mean feature of five crops of each image, by which STEGO finds neighbours; written once for any of its fits",
    writes={"crops": Write(("train",))},
    fits=False,
    trains_backbone=True,
    label="Crops",
)
