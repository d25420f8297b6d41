"""Pixel-adaptive mask refinement: smooth probabilities along similar colours, batched and on the device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_dims, check_finite, check_positive, check_shape, full_precision

PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)
_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def pamr(
    image: Tensor,
    probability: Tensor,
    *,
    dilations: Sequence[int] = PAMR_DILATIONS,
    iterations: int = 10,
    sigma: float = 0.1,
    valid: Tensor | None = None,
) -> Tensor:
    """Average every pixel's probabilities with those of similar neighbours, several times.

    Args:
        image: `(B, 3, H, W)` float in [0, 1].
        probability: `(B, C, H, W)` float.
        dilations: distances of the eight neighbours, each >= 1.
        iterations: how many, >= 1.
        sigma: colour tolerance relative to the local standard deviation, > 0.
        valid: `(B, H, W)` bool; its bounding box is treated as the whole image. Values outside repeat the border.

    Returns:
        `(B, C, H, W)` float; a convex combination of the input, so sums over C are kept.

    Raises:
        ValueError: if a shape does not fit, a setting is not positive, or a value is not finite.

    Source: Araslanov & Roth 2020 (arXiv:2005.08104) and its code.
    """
    check_dims("image", image, "B C H W")
    check_shape("probability", probability, (len(image), probability.shape[1], *image.shape[-2:]), "B C H W")
    for name, value in (("iterations", iterations), ("sigma", sigma), ("len(dilations)", len(dilations))):
        check_positive(name, value)
    check_positive("min(dilations)", min(dilations))
    check_finite("image", image)
    check_finite("probability", probability)
    with full_precision(image):
        image, probability = as_float(image), as_float(probability)
        box = None if valid is None else box_index(valid)
        weights = _affinity(_fill(image, box), dilations, sigma)  # (P, B, 1, H, W)
        for _ in range(iterations):
            total = torch.zeros_like(probability)
            for weight, neighbour in zip(weights, _neighbours(_fill(probability, box), dilations), strict=True):
                total.addcmul_(weight, neighbour)
            probability = total
        return _fill(probability, box)


def box_index(valid: Tensor) -> Tensor:
    """Flat index `(B, H*W)` of the nearest pixel inside the bounding box of `valid` `(B, H, W)`."""
    rows, columns = _nearest(valid.any(2)), _nearest(valid.any(1))  # (B, H), (B, W)
    return (rows[:, :, None] * valid.shape[2] + columns[:, None, :]).flatten(1)


def _nearest(line: Tensor) -> Tensor:
    """Clamp every position of `(B, L)` into the range between its first and last True."""
    length = line.shape[1]
    position = torch.arange(length, device=line.device).expand_as(line)
    first = torch.where(line, position, length).amin(1, keepdim=True)
    last = torch.where(line, position, -1).amax(1, keepdim=True)
    empty = last < 0
    return torch.where(empty, position, position.clamp(first.masked_fill(empty, 0), last.masked_fill(empty, length)))


def _fill(maps: Tensor, box: Tensor | None) -> Tensor:
    """Repeat the border of the valid box over the rest of the canvas."""
    if box is None:
        return maps
    return maps.flatten(2).gather(2, box[:, None].expand(-1, maps.shape[1], -1)).view_as(maps)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield views `(B, C, H, W)` of the eight neighbours at every dilation; borders repeat."""
    height, width = maps.shape[-2:]
    reach = max(dilations)
    padded = functional.pad(maps, (reach,) * 4, mode="replicate")
    for step in dilations:
        for dy, dx in _OFFSETS:
            top, left = reach + dy * step, reach + dx * step
            yield padded[:, :, top : top + height, left : left + width]


def _affinity(image: Tensor, dilations: Sequence[int], sigma: float) -> Tensor:
    """Softmax over the neighbours of the negative colour distance, `(P, B, 1, H, W)`."""
    samples = 9 * len(dilations)  # the centre counts once per dilation
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations):
        difference = neighbour - image
        total += difference
        squares.addcmul_(difference, difference)
    deviation = ((squares - total.square() / samples).clamp_min(0.0) / (samples - 1)).sqrt()
    scale = 1.0 / (sigma * deviation + 1e-8)
    distance = [((n - image).abs() * scale).mean(1, keepdim=True) for n in _neighbours(image, dilations)]
    return torch.stack(distance).neg_().softmax(0)  # (P, B, 1, H, W)
