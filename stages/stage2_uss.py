"""Stage 2: images -> unsupervised segmentation features of the training images, without any label."""

from dhr_lightning.pipeline.command import Stage, stage_main

STAGE = Stage("stage2_uss", "images -> unsupervised segmentation features", ("uss",))

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
