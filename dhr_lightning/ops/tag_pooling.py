"""Pooling of class maps into one logit per image and class."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.errors import ConfigError, check_keys
from dhr_lightning.ops._checks import as_float, check_choice, check_dims, check_positive, check_shape

POOLINGS = ("mean", "topk", "logsumexp", "generalised_mean")


@dataclass(frozen=True)
class TagPooling:
    """How the logits of an image's cells become the logit of the image.

    Attributes:
        name: `mean`, `topk`, `logsumexp` or `generalised_mean`, see `pool_tags`.
        share: of `topk`, share of the cells that count, in (0, 1].
        sharpness: r of `logsumexp`, > 0: near 0 it is the mean, large values approach the maximum.
        exponent: p of `generalised_mean`, > 0: 1 is the mean of the probabilities, large values approach the maximum.

    Raises:
        ValueError: if the name is unknown or a value is out of range.
    """

    name: str = "mean"
    share: float = 0.2
    sharpness: float = 1.0
    exponent: float = 3.0

    def __post_init__(self) -> None:
        check_choice("name", self.name, POOLINGS)
        if not 0 < self.share <= 1:
            raise ValueError(f"Expected `share` in (0, 1], but got {self.share}.")
        check_positive("sharpness", self.sharpness)
        check_positive("exponent", self.exponent)


def tag_pooling(**settings: Any) -> TagPooling:
    """Pooling of the settings `pooling` of a task.

    Args:
        **settings: fields of `TagPooling` that differ from its defaults.

    Raises:
        ConfigError: if a field or a value cannot be used.
    """
    check_keys(settings, TagPooling.__dataclass_fields__, "pooling")
    try:
        return TagPooling(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.init_args.pooling is {settings}: {error}") from error


def pool_tags(logits: Tensor, valid: Tensor | None, pooling: TagPooling) -> Tensor:
    """Pool the logits of all cells of an image, each class by itself.

    `mean`: of the logits. `topk`: mean of the largest logits whose cells make up `share` of the image; the last of them
    counts in part, and at least one cell counts. `logsumexp`: `(1/r) log mean exp(r x)`. `generalised_mean`: of the
    probabilities, given as a logit: `q = (mean sigmoid(x)^p)^(1/p)`, then `log q - log(1 - q)`, at most about 87.

    Args:
        logits: `(B, T, h, w)`, finite where cells are valid.
        valid: `(B, h, w)` bool, or float in [0, 1]: the share of each cell that is image; `None` for whole cells. A
            cell counts by its share, and one of share 0 is not read.
        pooling: which of them, and its constants.

    Returns:
        `(B, T)` float; 0 for an image without a valid cell.

    Raises:
        ValueError: if a shape is another one.

    Source: log-sum-exp of Pinheiro & Collobert 2015 (arXiv:1411.6228); generalised mean of Radenović et al. 2019
        (arXiv:1711.02512), Eq. 3.
    Differs: the published generalised mean is one of rectified features; here it is one of probabilities, so that a
        class that is nowhere can have a negative logit. Cells count by their share.
    """
    check_dims("logits", logits, "B T h w")
    cells = as_float(logits).flatten(2)  # (B, T, N)
    if valid is None:
        weight = torch.ones_like(cells[:, :1])
    else:
        check_shape("valid", valid, (logits.shape[0], *logits.shape[2:]), "B h w")
        weight = valid.flatten(1)[:, None].to(cells.dtype)  # (B, 1, N)
        cells = torch.where(weight > 0, cells, 0.0)
    if pooling.name == "mean":
        return _weighted_mean(cells, weight)
    if pooling.name == "topk":
        return _top_mean(cells, weight, pooling.share)
    if pooling.name == "logsumexp":
        return _log_mean_exp(pooling.sharpness * cells, weight) / pooling.sharpness
    log_mean = _log_mean_exp(pooling.exponent * functional.logsigmoid(cells), weight) / pooling.exponent
    pooled = log_mean - (-torch.expm1(log_mean)).clamp_min(torch.finfo(cells.dtype).tiny).log()
    return torch.where(weight.sum(2) > 0, pooled, 0.0)


def _weighted_mean(cells: Tensor, weight: Tensor) -> Tensor:
    return (cells * weight).sum(2) / weight.sum(2).clamp(min=1e-6)


def _top_mean(cells: Tensor, weight: Tensor, share: float) -> Tensor:
    """Mean of the largest values of `(B, T, N)` that together weigh `share` of all."""
    total = weight.sum(2, keepdim=True)  # (B, 1, 1)
    budget = torch.maximum(share * total, total.clamp_max(1.0))
    order = cells.masked_fill(weight == 0, -torch.inf).argsort(dim=2, descending=True, stable=True)
    weight = weight.expand_as(cells).gather(2, order)
    before = weight.cumsum(2) - weight
    return _weighted_mean(cells.gather(2, order), torch.minimum((budget - before).clamp_min(0.0), weight))


def _log_mean_exp(x: Tensor, weight: Tensor) -> Tensor:
    """`log mean exp` of `(B, T, N)` -> `(B, T)`, precise for large values as well as for tiny ones."""
    outside = weight == 0
    high = x.detach().masked_fill(outside, -torch.inf).amax(2, keepdim=True)  # any constant gives the same result
    high = torch.where(high.isinf(), 0.0, high)
    excess = torch.where(outside, 0.0, x - high).expm1()  # in [-1, 0]
    return high[..., 0] + _weighted_mean(excess, weight).log1p()
