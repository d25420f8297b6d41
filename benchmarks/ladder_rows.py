"""Rows of the mask ladder and of the ablation: each is a recipe with one step dropped or some settings changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One setting of the mask step.

    Args:
        label: name in the table.
        changes: fields of `RebalanceSettings` that differ.
        mars: whether it starts from MARS masks, else from the first masks.
        strong: refine the final map with the CRF of the final masks instead of that of the seeds.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    mars: bool = True
    strong: bool = True


_DEFAULT = {"features": "both", "pooling": "area", "guard": "heatmap"}  # a recipe may say otherwise
_BARE = {"guard": "none"}
_PUBLISHED = {"features": "uss", "pooling": "majority", **_BARE}
PRODUCT = "default"
ROWS = {
    "base_seed_plain": Row("base + seed without OT", {"uss": False, "seed_transport": False}, mars=False, strong=False),
    "base_seed": Row("base + OT seed", {"uss": False}, mars=False, strong=False),
    "base_uss_wss": Row("base + seed + USS + WSS (no MARS)", _PUBLISHED, mars=False, strong=False),
    "mars_seed_raw": Row("mars + OT seed, not refined", {"uss": False, "refine_seed": False}, strong=False),
    "mars_seed_plain": Row("mars + refined seed, no OT", {"uss": False, "seed_transport": False}, strong=False),
    "mars_seed": Row("mars + OT seed", {"uss": False}, strong=False),
    "mars_seed_all": Row("mars + OT seed, every seed pasted", {"uss": False, "seed": "all"}, strong=False),
    "mars_uss": Row("mars + seed + USS", {"wss": False, **_PUBLISHED}, strong=False),
    "mars_uss_wss": Row("mars + seed + USS + WSS", _PUBLISHED, strong=False),
    "mars_uss_wss_transport": Row(
        "mars + seed + USS + WSS + final transport", {"final_transport": True, **_PUBLISHED}, strong=False
    ),
    "reference": Row("profile `reference` (published order and constants)", {"profile": "reference", "tau": 0.8}),
    "reference_converged": Row(
        "the same with converged transports (paper)", {"profile": "reference", "tau": 0.8, "stopping": "marginal"}
    ),
    "min_max": Row(
        "mars + seed + USS + WSS, strong final CRF, min-max, tau 0.8 (paper)",
        {"heatmap": "min_max", "tau": 0.8, **_PUBLISHED},
    ),
    "relu": Row("ReLU of the cosine instead of softmax", {**_DEFAULT, "heatmap": "relu", **_BARE}),
    "uss_strong": Row("mars + seed + USS, strong final CRF", {"wss": False, **_PUBLISHED}),
    "uss_wss_strong": Row("mars + seed + USS + WSS, strong final CRF", _PUBLISHED),
    "majority": Row("+ heatmaps of both features", {"features": "both", "pooling": "majority", **_BARE}),
    "unguarded": Row("+ cells pooled by area", {**_DEFAULT, **_BARE}),
    "no_seed": Row("the same without seeds", {**_DEFAULT, "seed": "none", **_BARE}),
    "uniform": Row("+ last transport, uniform shares", {**_DEFAULT, "final_transport": True, **_BARE}),
    "area": Row(
        "+ last transport, area shares", {**_DEFAULT, "final_transport": True, "final_marginal": "area", **_BARE}
    ),
    "mix": Row(
        "+ last transport, mixed shares", {**_DEFAULT, "final_transport": True, "final_marginal": "mix", **_BARE}
    ),
    "sharp": Row("temperature 0.05", {**_DEFAULT, "temperature": 0.05, **_BARE}),
    "soft": Row("temperature 0.2", {**_DEFAULT, "temperature": 0.2, **_BARE}),
    "converged": Row("converged transports", {**_DEFAULT, "stopping": "marginal"}),
    "cost_all": Row("groups transported against all classes", {**_DEFAULT, "group_cost": "all"}),
    "level_first": Row("WSS features of the last stage but one only", {**_DEFAULT, "wss_levels": "first"}),
    "level_last": Row("WSS features of the last stage only", {**_DEFAULT, "wss_levels": "last"}),
    "gamma_auto": Row("seeds with Otsu's exponent", {**_DEFAULT, "gamma": "auto"}),
    "guard_seed": Row("guard from the seed", {**_DEFAULT, "guard": "seed"}),
    "guard_both": Row("guard from heatmap and seed", {**_DEFAULT, "guard": "both"}),
    "raw_guard": Row("guard from heatmap and unrefined seed", {**_DEFAULT, "guard": "both", "refine_seed": False}),
    "raw_guard_half": Row(
        "the same, of classes below half their seed",
        {**_DEFAULT, "guard": "both", "refine_seed": False, "min_share": 0.5},
    ),
    "raw_all": Row(
        "every unrefined seed pasted, guard from both",
        {**_DEFAULT, "guard": "both", "refine_seed": False, "seed": "all"},
    ),
    "default_base": Row("default, without MARS", _DEFAULT, mars=False),
    PRODUCT: Row("+ guard: as configured"),
}
SETS = {
    "ladder": (
        "base_seed_plain", "base_seed", "base_uss_wss", "mars_seed", "mars_uss", "mars_uss_wss", "min_max",
        "uss_wss_strong", "majority", "unguarded", PRODUCT, "mars_uss_wss_transport",
    ),
    "ablation": (
        "mars_seed_raw", "mars_seed_plain", "mars_seed", "mars_seed_all", "reference", "reference_converged",
        "min_max", "uss_strong", "uss_wss_strong", "majority", "unguarded", "default_base", "no_seed", "relu",
        "sharp", "soft", "uniform", "area", "mix", "converged", "cost_all", "level_first", "level_last",
        "gamma_auto", "guard_seed", "guard_both", "raw_guard", "raw_guard_half", "raw_all", PRODUCT,
    ),
}  # fmt: skip
