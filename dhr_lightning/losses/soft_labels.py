"""Cross-entropy with the shares of the classes in each cell."""

from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.ops._checks import as_float, check_dims, check_shape


def soft_cross_entropy(logits: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled area.

    Args:
        logits: `(B, C, h, w)`, any finite range.
        shares: `(B, C, h, w)` targets, which sum to 1 over C where `weight` > 0; see `ops.soft_labels.class_shares`.
        weight: `(B, h, w)` >= 0, such as the labelled share of each cell.

    Returns:
        Scalar float; 0 with a gradient of 0 where nothing is labelled.

    Raises:
        ValueError: if a shape does not fit.
    """
    check_dims("logits", logits, "B C h w")
    check_shape("shares", shares, logits.shape, "B C h w")
    check_shape("weight", weight, (len(logits), *logits.shape[2:]), "B h w")
    loss = -(as_float(shares) * F.log_softmax(as_float(logits), dim=1)).sum(1)  # (B, h, w)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)
