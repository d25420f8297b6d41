"""Stage 2: images -> unsupervised segmentation features (`uss`) of the training images, without any label."""

from dhr_lightning.pipeline import Stage, Step, stage_main

STAGE = Stage(
    "stage2_uss",
    "images -> unsupervised segmentation features",
    (Step("uss", "stage2_stego.yaml", builtin="stage2_filterbank.yaml"),),
)

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
