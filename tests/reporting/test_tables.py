from typing import Any, cast

from dhr_lightning.reporting.figures import Figures
from dhr_lightning.reporting.kinds import MaskKind
from dhr_lightning.reporting.tables import ladder


def test_masks_of_the_baseline_are_no_step_before_the_next():
    kinds = [MaskKind(name, "train", ()) for name in ("base_mask", "wss_mask", "mars_mask")]
    scores: dict[str, Any] = {kind.key: {"miou": miou} for kind, miou in zip(kinds, (0.6, 0.5, 0.7), strict=True)}
    bars = ladder(kinds, cast("dict[str, Figures]", scores), chained=True, scored=True)
    assert [bar.change for bar in bars] == ["", "−10.0", "+10.0"]
