"""Maps that follow the similarity of all pixels of an image."""

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_dims, check_positive, check_shape, full_precision

_EPS = 1e-5


def pixel_correlation(
    maps: Tensor, embedding: Tensor, *, valid: Tensor | None = None, repeat: int = 1, block: int = 4096
) -> Tensor:
    """Give every pixel the average of the maps over all pixels, weighted by the rectified cosine of their embeddings.

    Args:
        maps: `(B, C, h, w)` float, any range.
        embedding: `(B, D, h, w)` float.
        valid: `(B, h, w)` bool, pixels that have a vote; default all.
        repeat: how often, >= 1: SEAM does it once, SFC twice.
        block: pixels that are compared with all others at a time, so that memory is `block * h * w`.

    Returns:
        `(B, C, h, w)` float32 within the range of the maps. Gradients reach maps and embedding.

    Raises:
        ValueError: if a shape does not fit.

    Source: pixel correlation module of SEAM (arXiv:2004.04581), Eq. 7-9; SFC (AAAI 2024).
    """
    check_dims("maps", maps, "B C h w")
    check_positive("repeat", repeat)
    check_shape("embedding", embedding, (len(maps), embedding.shape[1], *maps.shape[-2:]), "B D h w")
    with full_precision(maps):
        flat = embedding.float().flatten(2)  # (B, D, P)
        unit = flat / (flat.norm(dim=1, keepdim=True) + _EPS)
        voters = unit if valid is None else unit * valid.flatten(1)[:, None]
        result = maps.float().flatten(2)  # (B, C, P)
        for _ in range(repeat):
            result = torch.cat([_averages(result, voters, part) for part in unit.split(block, dim=2)], dim=2)
    return result.view(maps.shape)


def _averages(rows: Tensor, voters: Tensor, part: Tensor) -> Tensor:
    """Weighted averages `(B, C, b)` of rows `(B, C, P)` for some pixels `(B, D, b)`; their weights sum to one."""
    weights = (voters.transpose(1, 2) @ part).relu()  # (B, P, b)
    return rows @ (weights / (weights.sum(1, keepdim=True) + _EPS))
