"""Every choice of the mask step as a typed option, and named sets of choices."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from dhr_lightning.ops._checks import check_choice, check_positive, check_range
from dhr_lightning.ops.heatmaps import HeatmapMode
from dhr_lightning.ops.seeds import SeedMode
from dhr_lightning.ops.transport.plan import Stopping, TransportBackend, TransportOptions
from dhr_lightning.ops.transport.pot import check_pot

Guard = Literal["none", "heatmap", "seed", "both"]


@dataclass(frozen=True)
class RebalanceSettings:
    """Switches and constants of DHR; the defaults are the profile `default`, see `PROFILES`.

    Attributes:
        epsilon: entropy weight of every transport, > 0 (λ in the paper).
        transport: solver of every transport: `"torch"`, ours, or `"pot"`, the batch solver of POT. That always
            converges, all images of a batch together, and is slower; up to rounding its masks are those of `"torch"`
            with `stopping="marginal"`.
        stopping: of `"torch"`: `"absolute"` as in the published code, or `"marginal"` to converge.
        tau: cosine above which two classes form a group, in [0, 1] (τ).
        gamma: exponent of the background score of the seeds, > 0 (γ), or `"auto"`: from Otsu's threshold per image.
        seed_transport: weight the CAMs by their transport plan.
        seed_background: let the background take part in the seeds; without it, as in the published code, seeds of
            one or two classes cover the whole image.
        seed: paste seeds of `"vanished"` classes, of `"all"`, or of `"none"`.
        refine_seed: refine the seeds, if a refinement is given.
        min_pixels: a class below this area in the mask has vanished.
        min_share: the same as a share of the class's seed, in [0, 1].
        uss: replace the mask by heatmaps of image features; otherwise the merged mask is the result.
        features: the heatmaps compare the unsupervised features (`"uss"`, as published), or average the cosines of
            these and of the supervised ones (`"both"`, ours).
        wss: separate alike classes by the supervised features (needs `uss`).
        wss_levels: levels of those features: `"all"` that are given, the `"first"` or the `"last"` of them.
        group_cost: the transport of a group runs over the members of the `"group"`, or over `"all"` classes.
        pooling: cells of a class: by `"area"`, or by `"majority"` of their pixels as in the published code.
        grouping: `"components"`, or `"row_upper"` as in the published code.
        heatmap: `"min_max"` of the cosine per class, its `"relu"`, or `"softmax"` over the classes.
        temperature: of the softmax, > 0.
        final_transport: apply a last transport over all classes; off, because uniform shares inflate small classes
            where a background covers most of the image.
        final_order: `"after"` the supervised features as in the published code, or `"before"` them as in the paper.
        final_marginal: class shares of the last transport: `"uniform"` with min-max weights as in the published code,
            the `"area"` in the merged mask, or their `"mix"`, both with posterior weights.
        refine_final: refine the final heatmaps, if a refinement is given.
        guard: restore a class that the last refinement has removed, from the `"heatmap"` before it, from the
            `"seed"`, or from `"both"` in turn; `min_pixels` and `min_share` say what removed means.
        preserve_ignore: keep 255 of the merged mask, which heatmaps otherwise relabel.

    Raises:
        ValueError: if a setting is unknown or out of range.
        DependencyError: if POT is asked for and not installed.
    """

    epsilon: float = 0.1
    transport: TransportBackend = "torch"
    stopping: Stopping = "absolute"
    tau: float = 0.8
    gamma: float | Literal["auto"] = 2.0
    seed_transport: bool = True
    seed_background: bool = True
    seed: SeedMode = "vanished"
    refine_seed: bool = True
    min_pixels: int = 16
    min_share: float = 0.2
    uss: bool = True
    features: Literal["uss", "both"] = "both"
    wss: bool = True
    wss_levels: Literal["all", "first", "last"] = "all"
    group_cost: Literal["group", "all"] = "group"
    pooling: Literal["majority", "area"] = "area"
    grouping: Literal["components", "row_upper"] = "components"
    heatmap: HeatmapMode = "softmax"
    temperature: float = 0.1
    final_transport: bool = False
    final_order: Literal["after", "before"] = "after"
    final_marginal: Literal["uniform", "area", "mix"] = "uniform"
    refine_final: bool = True
    guard: Guard = "heatmap"
    preserve_ignore: bool = False

    def __post_init__(self) -> None:
        for name in ("epsilon", "temperature"):
            check_positive(name, getattr(self, name))
        if not (self.gamma == "auto" or (not isinstance(self.gamma, str) and self.gamma > 0)):
            raise ValueError(f"Expected `gamma` > 0 or 'auto', but got {self.gamma!r}.")
        check_range("tau", self.tau, 0.0, 1.0)
        check_range("min_share", self.min_share, 0.0, 1.0)
        check_range("min_pixels", self.min_pixels, 0, float("inf"))
        check_choice("transport", self.transport, ("torch", "pot"))
        check_choice("stopping", self.stopping, ("absolute", "marginal"))
        check_choice("seed", self.seed, ("vanished", "all", "none"))
        check_choice("features", self.features, ("uss", "both"))
        check_choice("wss_levels", self.wss_levels, ("all", "first", "last"))
        check_choice("group_cost", self.group_cost, ("group", "all"))
        check_choice("pooling", self.pooling, ("majority", "area"))
        check_choice("grouping", self.grouping, ("components", "row_upper"))
        check_choice("heatmap", self.heatmap, ("min_max", "relu", "softmax"))
        check_choice("final_order", self.final_order, ("after", "before"))
        check_choice("final_marginal", self.final_marginal, ("uniform", "area", "mix"))
        check_choice("guard", self.guard, ("none", "heatmap", "seed", "both"))
        if self.transport == "pot":  # now, rather than at the first masks after a fit
            check_pot("transport")

    @property
    def transport_options(self) -> TransportOptions:
        """Arguments that all transports share; POT always converges."""
        stopping: Stopping = "marginal" if self.transport == "pot" else self.stopping
        return {"epsilon": self.epsilon, "stopping": stopping, "backend": self.transport}


PROFILES = {
    "default": RebalanceSettings(),
    # Order and constants of the published code. Repaired: a background takes part in the seeds, features line up.
    "reference": RebalanceSettings(
        seed="all",
        features="uss",
        pooling="majority",
        heatmap="min_max",
        grouping="row_upper",
        final_transport=True,
        guard="none",
    ),
}


def rebalance_settings(profile: str = "default", **changes: Any) -> RebalanceSettings:
    """Settings of a profile, with changes.

    Args:
        profile: `"default"` (what did best so far, see docs/method.md) or `"reference"`
            (published order and constants, repaired where the code cannot run or erases the background).
        **changes: fields of `RebalanceSettings` that differ.

    Raises:
        ValueError: if the profile or a value is unknown.
        TypeError: if a field is unknown.
        DependencyError: if POT is asked for and not installed.
    """
    check_choice("profile", profile, tuple(PROFILES))
    return replace(PROFILES[profile], **changes)
