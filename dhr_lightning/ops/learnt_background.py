"""Background learnt from the cells in which class activation maps are confident."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dhr_lightning.ops._checks import as_float, check_dims, check_finite, check_positive, check_shape, full_precision
from dhr_lightning.ops.logistic import balanced_logistic

_EPS = 1e-5


class ConfidentCells:
    """A bounded sample of cells that the maps call foreground, by class, and of cells that they call background.

    Every cell draws a number that depends on its image and place only, and those with the smallest are kept: the
    sample is the same whatever the order of the images and their batches. Every class has the same room among the
    foreground cells, and the images that show it the same room among the background cells: otherwise the few classes
    that most images show decide what an object looks like.

    Args:
        tags: T, foreground classes.
        low: background are cells whose largest activation is below, in (0, high].
        high: foreground are cells whose largest activation is above, in [low, 1); of the class that has it.
        limit: cells that are kept of either kind, `limit // tags` (at least 1) for each class; with D channels
            `8 * limit * D` bytes, and twice that in between.
        seed: of the draw.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(self, tags: int, *, low: float = 0.15, high: float = 0.7, limit: int = 10_000, seed: int = 0) -> None:
        if not 0 < low <= high < 1:
            raise ValueError(f"Expected 0 < low <= high < 1, but got {low} and {high}.")
        check_positive("tags", tags)
        check_positive("limit", limit)
        self.tags, self.low, self.high, self.seed = tags, low, high, seed
        self.images = 0
        each = max(1, limit // tags)
        self._foreground = [_Sample(each) for _ in range(tags)]
        self._background = [_Sample(each) for _ in range(tags)]

    @torch.no_grad()
    def update(
        self, features: Tensor, cam: Tensor, keys: Tensor, images: Sequence[str], *, valid: Tensor | None = None
    ) -> None:
        """Add images.

        Args:
            features: `(B, D, h, w)` standardised features, finite where cells are valid.
            cam: `(B, K, h, w)` normalised maps in [0, 1] of the tagged classes on the same grid; 0 for absent ones.
            keys: `(B, K)` int64 in [-1, T), foreground class of each map; -1 = padding.
            images: names of the B images; each is added once.
            valid: `(B, h, w)` bool, cells that count; `None` for all.

        Raises:
            ValueError: if a shape does not fit, the names are not as many, or a chosen cell is not finite.
        """
        check_dims("features", features, "B D h w")
        check_dims("cam", cam, "B K h w")
        batch, _, *grid = features.shape
        check_shape("cam", cam, (batch, cam.shape[1], *grid), "B K h w")
        check_shape("keys", keys, cam.shape[:2], "B K")
        if len(images) != batch:
            raise ValueError(f"Expected `images` to be {batch} names, but got {len(images)}.")
        best, first = cam.max(1)  # (B, h, w)
        inside = torch.ones_like(best, dtype=torch.bool) if valid is None else valid
        check_shape("valid", inside, best.shape, "B h w")
        sure, rest = inside & (best > self.high), inside & (best < self.low)
        for index, name in enumerate(images):
            generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
            draw = torch.rand(grid[0] * grid[1], generator=generator, dtype=torch.float64, device="cpu")
            draw, rows = draw.to(features.device), features[index].flatten(1)
            for place, tag in enumerate(keys[index].tolist()):  # the few classes of an image
                if tag >= 0:
                    self._foreground[tag].add(rows, draw, (sure[index] & (first[index] == place)).flatten())
                    self._background[tag].add(rows, draw, rest[index].flatten())
        self.images += batch

    def result(self) -> tuple[list[Tensor], Tensor]:
        """Foreground cells `(F_c, D)` of each class, none for a class without sure cells, and background `(G, D)`.

        Raises:
            ValueError: if there is no cell of either kind; says what to do.
        """
        foreground = [sample.cells() for sample in self._foreground]
        background = [found for sample in self._background if len(found := sample.cells())]
        for kind, missing, side, advice in (
            ("foreground", not any(map(len, foreground)), f"above {self.high}", "Lower `high`"),
            ("background", not background, f"below {self.low}", "Raise `low`"),
        ):
            if missing:
                raise ValueError(
                    f"No cell of {self.images} images is {kind}: none has a largest activation {side}. {advice}, or "
                    "use a constant background score instead of a learnt one."
                )
        return foreground, torch.cat(background)


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
    """Logistic regressions, one for each class, that tell its foreground cells from the background cells.

    Args:
        cells: confident cells of the training images.
        l2: weight of the penalty on the weights, > 0, see `ops.logistic.balanced_logistic`.

    Returns:
        Weights `(T, D)` and biases `(T,)`. A class without sure cells has the regression of the cells of all others.

    Raises:
        ValueError: if there is no cell of either kind, or `l2` is not positive.
    """
    foreground, background = cells.result()
    found = [balanced_logistic(own, background, l2=l2) if len(own) else None for own in foreground]
    if None in found:
        shared = balanced_logistic(torch.cat([own for own in foreground if len(own)]), background, l2=l2)
        found = [shared if one is None else one for one in found]
    weights, biases = zip(*(one for one in found if one is not None), strict=True)
    return torch.stack(weights), torch.stack(biases)


def foreground_probability(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Probability that a cell belongs to a class and not to the background.

    Args:
        features: `(B, D, h, w)`, standardised as those of the fit.
        weight: `(T, D)` of `fit_background`.
        bias: `(T,)` of `fit_background`.

    Returns:
        `(B, T, h, w)` float in [0, 1], each class by itself.

    Raises:
        ValueError: if a shape does not fit.
    """
    check_dims("features", features, "B D h w")
    check_shape("weight", weight, (len(weight), features.shape[1]), "T D")
    check_shape("bias", bias, (len(weight),), "T")
    with full_precision(features):
        features = as_float(features)
        logits = torch.einsum("bdhw,td->bthw", features, weight.to(features.dtype))
        return (logits + bias.to(features.dtype)[:, None, None]).sigmoid()


def apply_background(cam: Tensor, probability: Tensor) -> Tensor:
    """Let the learnt background decide where objects are, and the maps which object it is.

    The score of a class is `p_c * M_c / max_k M_k`. So the score of the class whose map is the largest is its p, and
    `ops.cam.background_score` with an exponent of 1 gives the background what the largest score leaves of 1.

    Args:
        cam: `(B, K, h, w)` normalised maps in [0, 1]; 0 for absent classes.
        probability: `(B, K, h, w)` in [0, 1], of the same classes, see `foreground_probability`.

    Returns:
        `(B, K, h, w)` float in [0, 1]; 0 where every map is, whatever the probability.

    Raises:
        ValueError: if a shape does not fit.
    """
    check_dims("cam", cam, "B K h w")
    check_shape("probability", probability, cam.shape, "B K h w")
    cam = as_float(cam)
    return probability.to(cam.dtype) * (cam / cam.amax(1, keepdim=True).clamp_min(_EPS))
