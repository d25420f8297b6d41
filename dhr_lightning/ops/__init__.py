"""Pure, batched tensor functions; the public ones are names of this package.

A name is looked up, and torch loaded, when it is first used: the workers of the dense CRF import a module of this
package and must start fast. No module is called like a public function, or importing it would hide the function.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dhr_lightning.ops.affinity import feature_affinity, path_affinity, random_walk
    from dhr_lightning.ops.cam import background_score, normalize_cam
    from dhr_lightning.ops.confident import ConfidentThresholds, confident_labels
    from dhr_lightning.ops.correlation import correlation_groups
    from dhr_lightning.ops.crf.dense import CRFSettings, dense_crf
    from dhr_lightning.ops.heatmaps import (
        ClassHeatmaps,
        class_heatmaps,
        final_weights,
        group_weights,
        supervised_heatmaps,
    )
    from dhr_lightning.ops.mars import debiased_centroids, reject_biased
    from dhr_lightning.ops.neighbours import nearest_neighbours
    from dhr_lightning.ops.pixel_adaptive import pamr
    from dhr_lightning.ops.pooling import cell_labels, class_average_pooling
    from dhr_lightning.ops.profiles import RebalanceSettings, rebalance_settings
    from dhr_lightning.ops.rebalancing import RebalanceResult, rebalance
    from dhr_lightning.ops.refine import Refiner
    from dhr_lightning.ops.seeds import MergedMask, merge_seed, transport_seed
    from dhr_lightning.ops.thresholds import exponent_of, otsu_threshold
    from dhr_lightning.ops.transport.plan import transport_plan, transport_posterior, transport_weights

__all__ = [
    "CRFSettings",
    "ClassHeatmaps",
    "ConfidentThresholds",
    "MergedMask",
    "RebalanceResult",
    "RebalanceSettings",
    "Refiner",
    "background_score",
    "cell_labels",
    "class_average_pooling",
    "class_heatmaps",
    "confident_labels",
    "correlation_groups",
    "debiased_centroids",
    "dense_crf",
    "exponent_of",
    "feature_affinity",
    "final_weights",
    "group_weights",
    "merge_seed",
    "nearest_neighbours",
    "normalize_cam",
    "otsu_threshold",
    "pamr",
    "path_affinity",
    "random_walk",
    "rebalance",
    "rebalance_settings",
    "reject_biased",
    "supervised_heatmaps",
    "transport_plan",
    "transport_posterior",
    "transport_seed",
    "transport_weights",
]

_NAMES = {
    "affinity": ("feature_affinity", "path_affinity", "random_walk"),
    "cam": ("background_score", "normalize_cam"),
    "confident": ("ConfidentThresholds", "confident_labels"),
    "correlation": ("correlation_groups",),
    "crf.dense": ("CRFSettings", "dense_crf"),
    "heatmaps": ("ClassHeatmaps", "class_heatmaps", "final_weights", "group_weights", "supervised_heatmaps"),
    "mars": ("debiased_centroids", "reject_biased"),
    "neighbours": ("nearest_neighbours",),
    "pixel_adaptive": ("pamr",),
    "pooling": ("cell_labels", "class_average_pooling"),
    "profiles": ("RebalanceSettings", "rebalance_settings"),
    "rebalancing": ("RebalanceResult", "rebalance"),
    "refine": ("Refiner",),
    "seeds": ("MergedMask", "merge_seed", "transport_seed"),
    "thresholds": ("exponent_of", "otsu_threshold"),
    "transport.plan": ("transport_plan", "transport_posterior", "transport_weights"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
