"""The rows of the mask ladder and of the ablation: settings of DHR by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KIND = "dhr_mask/round_00"
LABEL_SCORE = 0.7


@dataclass(frozen=True)
class Row:
    """One setting of DHR.

    Args:
        label: name in the table.
        start: artifact kind that it starts from.
        changes: fields of `RebalanceSettings` that differ.
        strong: refine the final map with the CRF of the final masks instead of that of the seeds.
        relabel: refine the labels of the result once more; each label scores 0.7, the other classes share the rest.
        profile: named profile that `changes` apply to; default: the configuration's settings.
        features: heatmaps of the `"uss"` or of the network's own `"wss"` features.
        rounds: how often; each round starts from the masks of the last.
    """

    label: str
    start: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    strong: bool = False
    relabel: bool = False
    profile: str | None = None
    features: str = "uss"
    rounds: int = 1


PRODUCT = "default"
_BASE, _MARS = "base_mask", "mars_mask"
_DEFAULT = {"features": "both", "pooling": "area", "guard": "heatmap"}  # a configuration may say otherwise
_BARE = {"guard": "none"}
_PUBLISHED = {"features": "uss", "pooling": "majority", **_BARE}


def _final(label: str, changes: Mapping[str, Any], **options: Any) -> Row:
    """A change of the default profile: from MARS masks, with the strong last CRF."""
    return Row(label, _MARS, {**_DEFAULT, **changes}, strong=True, **options)


ROWS = {
    "base_seed_plain": Row("base + seed without OT", _BASE, {"uss": False, "seed_transport": False}),
    "base_seed": Row("base + OT seed", _BASE, {"uss": False}),
    "base_uss_wss": Row("base + seed + USS + WSS (no MARS)", _BASE, _PUBLISHED),
    "mars_seed_raw": Row("mars + OT seed, not refined", _MARS, {"uss": False, "refine_seed": False}),
    "mars_seed_plain": Row("mars + refined seed, no OT", _MARS, {"uss": False, "seed_transport": False}),
    "mars_seed": Row("mars + OT seed", _MARS, {"uss": False}),
    "mars_seed_all": Row("mars + OT seed, every seed pasted", _MARS, {"uss": False, "seed": "all"}),
    "mars_uss": Row("mars + seed + USS", _MARS, {"wss": False, **_PUBLISHED}),
    "mars_uss_wss": Row("mars + seed + USS + WSS", _MARS, _PUBLISHED),
    "mars_uss_wss_transport": Row(
        "mars + seed + USS + WSS + final transport", _MARS, {"final_transport": True, **_PUBLISHED}
    ),
    "mars_seed_strong": Row("mars + OT seed, strong CRF on its labels", _MARS, {"uss": False}, True, True),
    "reference": Row(
        "profile `reference` (published order and constants)", _MARS, strong=True, profile="reference"
    ),
    "reference_converged": Row(
        "the same with converged transports (paper)", _MARS, {"stopping": "marginal"}, strong=True, profile="reference"
    ),
    "min_max": _final("mars + seed + USS + WSS, strong final CRF, min-max, tau 0.8 (paper)", {
        "heatmap": "min_max", "tau": 0.8, **_PUBLISHED
    }),
    "relu": _final("ReLU of the cosine instead of softmax", {"heatmap": "relu", **_BARE}),
    "uss_strong": _final("mars + seed + USS, strong final CRF", {"wss": False, **_PUBLISHED}),
    "wss_strong": _final("mars + seed, WSS features in place of USS", {"wss": False, **_PUBLISHED}, features="wss"),
    "uss_wss_strong": _final("mars + seed + USS + WSS, strong final CRF", _PUBLISHED),
    "majority": _final("+ heatmaps of both features", {"pooling": "majority", **_BARE}),
    "unguarded": _final("+ cells pooled by area", _BARE),
    "no_seed": _final("the same without seeds", {"seed": "none", **_BARE}),
    "uniform": _final("+ last transport, uniform shares, min-max weights", {"final_transport": True, **_BARE}),
    "area": _final("+ last transport, area shares", {"final_transport": True, "final_marginal": "area", **_BARE}),
    "mix": _final("+ last transport, mixed shares", {"final_transport": True, "final_marginal": "mix", **_BARE}),
    "sharp": _final("temperature 0.05", {"temperature": 0.05, **_BARE}),
    "soft": _final("temperature 0.2", {"temperature": 0.2, **_BARE}),
    "converged": _final("converged transports", {"stopping": "marginal"}),
    "cost_all": _final("groups transported against all classes", {"group_cost": "all"}),
    "level_first": _final("WSS features of the last stage but one only", {"wss_levels": "first"}),
    "level_last": _final("WSS features of the last stage only", {"wss_levels": "last"}),
    "gamma_auto": _final("seeds with Otsu's exponent", {"gamma": "auto"}),
    "guard_seed": _final("guard from the seed", {"guard": "seed"}),
    "guard_both": _final("guard from heatmap and seed", {"guard": "both"}),
    "raw_guard": _final("guard from heatmap and unrefined seed", {"guard": "both", "refine_seed": False}),
    "raw_guard_half": _final(
        "the same, of classes below half their seed", {"guard": "both", "refine_seed": False, "min_share": 0.5}
    ),
    "raw_all": _final(
        "every unrefined seed pasted, guard from both", {"guard": "both", "refine_seed": False, "seed": "all"}
    ),
    "guarded": _final("+ guard (profile `default`)", {}),
    "default_base": Row("default, without MARS", _BASE, _DEFAULT, strong=True),
    PRODUCT: Row("+ guard: as configured", _MARS, strong=True),
    "default_twice": _final("default, two rounds", {}, rounds=2),
}  # fmt: skip

SETS = {
    "ladder": (
        "base_seed_plain", "base_seed", "base_uss_wss", "mars_seed", "mars_seed_strong", "mars_uss", "mars_uss_wss",
        "min_max", "uss_wss_strong", "majority", "unguarded", PRODUCT, "mars_uss_wss_transport",
    ),
    "ablation": (
        "mars_seed_raw", "mars_seed_plain", "mars_seed", "mars_seed_all", "reference", "reference_converged",
        "min_max", "uss_strong", "wss_strong", "uss_wss_strong", "majority", "unguarded", "guarded", "default_base",
        "default_twice", "no_seed", "relu", "sharp", "soft", "uniform", "area", "mix", "converged", "cost_all",
        "level_first", "level_last", "gamma_auto", "guard_seed", "guard_both", "raw_guard", "raw_guard_half",
        "raw_all", PRODUCT,
    ),
}  # fmt: skip
STAGE_ROWS = {"cam": "cam", "base_mask": "base", "mars_mask": "mars"}
