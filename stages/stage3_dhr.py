"""Stage 3: first masks and features -> baseline segmenter, debiased masks, DHR masks by rounds, final segmenter."""

from dhr_lightning.pipeline.command import Stage, stage_main

STAGE = Stage(
    "stage3_dhr", "first masks and features -> DHR masks and the final segmenter", ("baseline", "mars", "dhr")
)

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
