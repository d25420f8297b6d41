"""Stage 3: base masks and features -> baseline segmenter, debiased masks, DHR masks by rounds, final segmenter.

wss     trains on `base_mask`; writes `wss_mask` (train) and `prediction_base` (val)
mars    removes biased background from `base_mask`; writes `mars_mask`
dhr     rebalances `mars_mask` between epochs (`dhr_mask/round_KK`) and trains on it; writes `prediction` (val)
"""

from dhr_lightning.pipeline import Stage, Step, stage_main

STAGE = Stage(
    "stage3_dhr",
    "base masks and features -> DHR masks and the final segmenter",
    (Step("wss", "stage3_base.yaml"), Step("mars", "stage3_mars.yaml"), Step("dhr", "stage3_dhr.yaml")),
    report=True,
)

if __name__ == "__main__":
    raise SystemExit(stage_main(STAGE))
