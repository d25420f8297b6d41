"""Loss of affinities between nearby pixels: high within a class, low between classes."""

from torch import Tensor

from dhr_lightning.ops._checks import check_shape
from dhr_lightning.ops.affinity import neighbour_values

_EPS = 1e-5


def affinity_loss(affinity: Tensor, labels: Tensor, *, radius: int, ignore_index: int = 255) -> Tensor:
    """Mean logarithmic loss of the pairs within the background, within a class, and between classes.

    `1/4 mean -log(a + eps)` of background pairs, the same of pairs of one foreground class, and
    `1/2 mean -log(1 + eps - a)` of pairs with different labels; eps = 1e-5. Pairs with an ignored pixel do not count,
    and neither does a kind of pair that does not occur.

    Args:
        affinity: `(B, P, h, w)` in [0, 1], see `ops.affinity.path_affinity`.
        labels: `(B, h, w)` int64 class values, 0 = background.
        radius: that of the affinities.
        ignore_index: pixels without a label.

    Returns:
        scalar; 0 with a gradient of 0 where no pair counts.

    Raises:
        ValueError: if a shape does not fit.

    Source: PSA (arXiv:1803.10464), Eq. 4-6; IRNet (arXiv:1904.05044), Eq. 8.
    """
    other = neighbour_values(labels, radius=radius, fill=ignore_index)  # (B, P, h, w)
    check_shape("affinity", affinity, other.shape, "B P h w")
    own = labels[:, None]
    known = (own != ignore_index) & (other != ignore_index)
    equal = known & (own == other)
    high, low = -(affinity.float() + _EPS).log(), -(1 + _EPS - affinity.float()).log()
    background, foreground = _mean(high, equal & (own == 0)), _mean(high, equal & (own > 0))
    return 0.25 * background + 0.25 * foreground + 0.5 * _mean(low, known & ~equal)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
