"""Background learnt from the cells in which class activation maps are confident."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_dims, check_finite, check_positive, check_shape, full_precision
from dhr_lightning.ops.logistic import balanced_logistic

_EPS = 1e-5


class ConfidentCells:
    """A bounded, even sample of cells that the maps call foreground, and of cells that they call background.

    Every cell draws a number that depends on its image and place only, and those with the smallest are kept: the
    sample is the same whatever the order of the images and their batches.

    Args:
        low: background are cells whose largest activation is below, in (0, high].
        high: foreground are cells whose largest activation is above, in [low, 1).
        limit: cells that are kept of either kind; with D channels `8 * limit * D` bytes, and twice that in between.
        seed: of the draw.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(self, *, low: float = 0.15, high: float = 0.7, limit: int = 10_000, seed: int = 0) -> None:
        if not 0 < low <= high < 1:
            raise ValueError(f"Expected 0 < low <= high < 1, but got {low} and {high}.")
        check_positive("limit", limit)
        self.low, self.high, self.limit, self.seed = low, high, limit, seed
        self.images = 0
        self._kept = {"foreground": _Sample(limit), "background": _Sample(limit)}

    @torch.no_grad()
    def update(self, features: Tensor, cam: Tensor, images: Sequence[str], *, valid: Tensor | None = None) -> None:
        """Add images.

        Args:
            features: `(B, D, h, w)` standardised features, finite where cells are valid.
            cam: `(B, K, h, w)` normalised maps in [0, 1] of the tagged classes on the same grid; 0 for absent ones.
            images: names of the B images; each is added once.
            valid: `(B, h, w)` bool, cells that count; `None` for all.

        Raises:
            ValueError: if a shape does not fit, the names are not as many, or a chosen cell is not finite.
        """
        check_dims("features", features, "B D h w")
        check_dims("cam", cam, "B K h w")
        batch, _, *grid = features.shape
        check_shape("cam", cam, (batch, cam.shape[1], *grid), "B K h w")
        if len(images) != batch:
            raise ValueError(f"Expected `images` to be {batch} names, but got {len(images)}.")
        best = cam.amax(1)  # (B, h, w)
        inside = torch.ones_like(best, dtype=torch.bool) if valid is None else valid
        check_shape("valid", inside, best.shape, "B h w")
        confident = {"foreground": inside & (best > self.high), "background": inside & (best < self.low)}
        for index, name in enumerate(images):
            generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
            draw = torch.rand(grid[0] * grid[1], generator=generator, dtype=torch.float64, device="cpu")
            for kind, chosen in confident.items():
                self._kept[kind].add(features[index].flatten(1), draw.to(features.device), chosen[index].flatten())
        self.images += batch

    def result(self) -> tuple[Tensor, Tensor]:
        """Foreground `(F, D)` and background `(G, D)` cells, F and G at most `limit`.

        Raises:
            ValueError: if there is no cell of either kind; says what to do.
        """
        found = {kind: sample.cells() for kind, sample in self._kept.items()}
        for kind, side, advice in (
            ("foreground", f"above {self.high}", "Lower `high`"),
            ("background", f"below {self.low}", "Raise `low`"),
        ):
            if not len(found[kind]):
                raise ValueError(
                    f"No cell of {self.images} images is {kind}: none has a largest activation {side}. {advice}, or "
                    "use a constant background score instead of a learnt one."
                )
        return found["foreground"], found["background"]


class _Sample:
    """The cells with the smallest draws, in their order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.highest = torch.inf
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, draw: Tensor, chosen: Tensor) -> None:
        """Features `(D, N)`, draws and choice `(N,)`."""
        place = (chosen & (draw < self.highest)).nonzero()[:, 0]
        if not len(place):
            return
        cells = as_float(features[:, place]).T.contiguous()  # (n, D)
        check_finite("features", cells, seen=cells.sum())
        self.parts.append((draw[place], cells))
        if sum(len(part) for part, _ in self.parts) > 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        draw, cells = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        order = draw.argsort(stable=True)[: self.limit]
        self.parts = [(draw[order], cells[order])]
        if len(order) == self.limit:
            self.highest = float(draw[order[-1]])

    def cells(self) -> Tensor:
        if not self.parts:
            return torch.zeros(0, 0)
        self._cut()
        return self.parts[0][1]


def fit_background(cells: ConfidentCells, *, l2: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weight `(D,)` and bias `()` of a logistic regression that tells the foreground cells from the background cells.

    Args:
        cells: confident cells of the training images.
        l2: weight of the penalty on the weight, > 0, see `ops.logistic.balanced_logistic`.

    Raises:
        ValueError: if there is no cell of either kind, or `l2` is not positive.
    """
    return balanced_logistic(*cells.result(), l2=l2)


def foreground_probability(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Probability that a cell is foreground.

    Args:
        features: `(B, D, h, w)`, standardised as those of the fit.
        weight: `(D,)` of `fit_background`.
        bias: `()` of `fit_background`.

    Returns:
        `(B, h, w)` float in [0, 1].

    Raises:
        ValueError: if a shape does not fit.
    """
    check_dims("features", features, "B D h w")
    check_shape("weight", weight, (features.shape[1],), "D")
    with full_precision(features):
        features = as_float(features)
        return (torch.einsum("bdhw,d->bhw", features, weight.to(features.dtype)) + bias).sigmoid()


def apply_background(cam: Tensor, probability: Tensor) -> Tensor:
    """Let the learnt background decide where objects are, and the maps which object it is.

    The score of a class is `p * M_c / max_k M_k`, that of the background `1 - p`. So the largest score of a cell is p,
    a constant background score of 0.5 labels as background what `1 - p` does, and `ops.cam.background_score` gives
    `1 - p` for an exponent of 1.

    Args:
        cam: `(B, K, h, w)` normalised maps in [0, 1]; 0 for absent classes.
        probability: `(B, h, w)` in [0, 1], see `foreground_probability`.

    Returns:
        `(B, K, h, w)` float in [0, 1]; 0 where every map is, whatever the probability.

    Raises:
        ValueError: if a shape does not fit.
    """
    check_dims("cam", cam, "B K h w")
    check_shape("probability", probability, (len(cam), *cam.shape[2:]), "B h w")
    cam = as_float(cam)
    return probability[:, None].to(cam.dtype) * (cam / cam.amax(1, keepdim=True).clamp_min(_EPS))
