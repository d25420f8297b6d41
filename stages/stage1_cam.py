"""Stage 1: image tags -> class activation maps and the first masks of the training images."""

from dhr_lightning.pipeline.command import Stage, stage_main

STAGE = Stage("stage1_cam", "image tags -> CAMs and first masks", ("cam", "propagation"))

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
