"""Anti-adversarial climbing: the image changes so that its class scores higher, and its maps are summed on the way."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.resize import valid_cells


@dataclass(frozen=True)
class Climb:
    """How images climb.

    Args:
        iterations: steps of every scale of 1 and above, >= 1; scales below take half as many.
        step: largest change of a normalised pixel in a step, > 0.
        restraint: weight of what keeps discriminative regions from growing further (λ), >= 0.
        threshold: share of the largest attribution above which a region is discriminative, in (0, 1).
        balanced: scales with fewer steps count as much as the others; the code counts them half, by an oversight.

    Raises:
        ConfigError: if a value is out of range.
    """

    iterations: int = 27
    step: float = 0.08
    restraint: float = 7.0
    threshold: float = 0.5
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.step <= 0 or self.restraint < 0 or not 0 < self.threshold < 1:
            raise ConfigError(
                "Expected climb.iterations >= 1, step > 0, restraint >= 0 and threshold in (0, 1), but got "
                f"{self.iterations}, {self.step}, {self.restraint} and {self.threshold}."
            )

    def steps(self, scale: float) -> int:
        """Steps of a scale."""
        return self.iterations if scale >= 1 else max(1, self.iterations // 2)

    def weight(self, scale: float) -> float:
        """Factor of the maps of a scale."""
        return self.iterations / self.steps(scale) if self.balanced else 1.0


@dataclass(frozen=True)
class Pairs:
    """Images and the class that each climbs; every image goes with its mirror.

    Args:
        image: `(N, 3, H, W)` normalised, 0 outside.
        valid: `(N, H, W)` bool.
        tag: `(N,)` int64, index of the class among the tags.
    """

    image: Tensor
    valid: Tensor
    tag: Tensor


def attributions(maps: Tensor, tag: Tensor, weight: Tensor) -> Tensor:
    """Grad-CAM of a classifier that is a 1x1 convolution without bias, without a backward pass.

    `R_b = s_b ReLU(z_b)` with `s_b = a_b / (n sum a)`: `a_b` counts the positive cells of the class in an image or its
    mirror, `n` the positive weights of the class. Equal to the published weights, which take a second backward pass.

    Args:
        maps: `(2, N, T, h, w)` raw maps of images and mirrors.
        tag: `(N,)` int64.
        weight: `(T, F)` of the classifier.

    Returns:
        `(N, h, w)` >= 0, image and unmirrored mirror summed.
    """
    own = _own(maps, tag).relu()  # (2, N, h, w)
    area = (own > 0).sum((2, 3)).float()  # (2, N)
    positive = (weight > 0).sum(1)[tag].clamp_min(1)  # (N,)
    scaled = own * (area / (positive * area.sum(0)).clamp_min(1.0))[..., None, None].detach()
    return scaled[0] + scaled[1].flip(-1)


def climb(
    classify: Callable[[Tensor], Tensor], weight: Tensor, pairs: Pairs, settings: Climb, *, scale: float
) -> Tensor:
    """Sum of the attributions of images that climb at one scale.

    Args:
        classify: `(B, 3, H, W)` -> raw maps `(B, T, h, w)`; in evaluation mode, so that images do not meet.
        weight: `(T, F)` of its last layer, a 1x1 convolution without bias.
        pairs: what climbs, at this scale already.
        settings: see `Climb`.
        scale: relative size of the images, which decides on the number of steps.

    Returns:
        `(N, h, w)` >= 0.

    Source: AdvCAM (arXiv:2103.08896), Eq. 4-7, and its code.
    Differs: one forward and one backward pass a step in place of two; classes and images go together, each with its own
        gradient; padding does not count.
    """
    image = torch.stack([pairs.image, pairs.image.flip(-1)])  # (2, N, 3, H, W)
    inside = torch.stack([pairs.valid, pairs.valid.flip(-1)])[:, :, None]  # (2, N, 1, H, W)
    low = image.masked_fill(~inside, torch.inf).amin((0, 2, 3, 4), keepdim=True)
    high = image.masked_fill(~inside, -torch.inf).amax((0, 2, 3, 4), keepdim=True)
    total, first = torch.zeros((), device=image.device), torch.zeros((), device=image.device)
    for step in range(settings.steps(scale)):
        image = image.detach().requires_grad_(True)
        maps = _paired(classify(image.flatten(0, 1)).float())  # (2, N, T, h, w)
        grid = (maps.shape[-2], maps.shape[-1])
        cells = _paired(valid_cells(inside[:, :, 0].flatten(0, 1), grid))[:, :, None]
        maps = maps * cells
        found = attributions(maps, pairs.tag, weight)
        first = found.detach() if step == 0 else first
        total = total + settings.weight(scale) * found.detach()
        if step + 1 == settings.steps(scale):
            break  # the last image is never looked at
        (gradient,) = torch.autograd.grad(_objective(maps, cells, found, first, pairs.tag, settings), image)
        gradient = gradient * inside
        largest = gradient.abs().amax((0, 2, 3, 4), keepdim=True)
        image = torch.clamp(image + settings.step * gradient / (largest + 1e-12), low, high) * inside
    return total


def _objective(maps: Tensor, cells: Tensor, found: Tensor, first: Tensor, tag: Tensor, settings: Climb) -> Tensor:
    """Score of the class against all others, less the growth of regions that are discriminative already."""
    pooled = (maps.relu().sum((3, 4)) / cells.sum((3, 4)).clamp_min(1)).sum(0)  # (N, T)
    own = pooled.gather(1, tag[:, None])[:, 0]
    high = found.detach() > settings.threshold * found.detach().amax((1, 2), keepdim=True)
    growth = ((found - first).abs() * high).sum((1, 2))
    return (2 * own - pooled.sum(1) - settings.restraint * growth).sum()


def _paired(both: Tensor) -> Tensor:
    """`(2 N, ...)` -> `(2, N, ...)`."""
    return both.reshape(2, len(both) // 2, *both.shape[1:])


def _own(maps: Tensor, tag: Tensor) -> Tensor:
    """Map `(2, N, h, w)` of the class of each image."""
    index = tag.view(1, -1, 1, 1, 1).expand(len(maps), -1, 1, *maps.shape[-2:])
    return maps.gather(2, index)[:, :, 0]


def resized(pairs: Pairs, scale: float) -> Pairs:
    """Pairs at another scale."""
    if scale == 1.0:
        return pairs
    size = [max(1, round(side * scale)) for side in pairs.image.shape[-2:]]
    image = F.interpolate(pairs.image, size, mode="bilinear", align_corners=False)
    valid = F.interpolate(pairs.valid[:, None].float(), size, mode="nearest")[:, 0] > 0.5
    return Pairs(image * valid[:, None], valid, pairs.tag)
