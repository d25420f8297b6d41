"""Stage 1: image tags -> class activation maps (`cam`) and base masks (`base_mask`) of the training images."""

from dhr_lightning.pipeline import Stage, Step, stage_main

STAGE = Stage("stage1_cam", "image tags -> CAMs and base masks", (Step("cam", "stage1_cam.yaml"),))

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
