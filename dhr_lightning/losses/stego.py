"""Correspondence distillation."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_points(maps: Tensor, coordinates: Tensor) -> Tensor:
    """Sample `(B, D, h, w)` bilinearly at `(B, P, 2)` coordinates in [-1, 1] -> `(B, D, P)`, L2-normalised over D."""
    points = F.grid_sample(maps.float(), coordinates[:, None], padding_mode="border", align_corners=True)[:, :, 0]
    return F.normalize(points, dim=1, eps=1e-10)


def correspondence_loss(
    features: Tensor, other_features: Tensor, code: Tensor, other_code: Tensor, *, shift: float
) -> Tensor:
    """Pull codes together where frozen features correspond more than `shift`, push them apart elsewhere.

    Args:
        features: `(B, F, P)` unit features of the anchors at P points; no gradient flows into them.
        other_features: `(B, F, P)` unit features of the partners.
        code: `(B, D, P)` unit codes of the anchors.
        other_code: `(B, D, P)` unit codes of the partners.
        shift: `b`; feature correspondence above it attracts.

    Returns:
        Scalar mean over the batch and all pairs of points.

    Source: STEGO (arXiv:2203.08414), Eq. 4 with spatial centring (Eq. 5) and clamp at zero.
    """
    with torch.no_grad():
        similarity = features.transpose(1, 2) @ other_features  # (B, P, P)
        similarity = similarity - similarity.mean(2, keepdim=True) + similarity.mean()
    agreement = (code.transpose(1, 2) @ other_code).clamp(min=0)
    return -(agreement * (similarity - shift)).mean()
