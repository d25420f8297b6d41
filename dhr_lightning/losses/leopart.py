"""Dense clustering of overlapping views: where they meet, which cells are foreground, and the loss of Leopart."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional as image

from dhr_lightning.ops.transport.plan import transport_posterior

_GRID = 7  # cells per side at which an overlap is compared


class LeopartSettings(NamedTuple):
    """Constants of the loss.

    Args:
        temperature: of the student's cosines.
        epsilon: entropy of the assignments.
        mass: part of the class token's attention that counts as foreground.
        blur: of the attention before, standard deviation in cells.

    Source: Leopart (arXiv:2204.13101), published code.
    """

    temperature: float = 0.1
    epsilon: float = 0.05
    mass: float = 0.6
    blur: float = 0.6


def overlap_boxes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Where two views of an image meet, seen from each of them.

    Args:
        first: `(B, 4)` left, top, right, bottom in parts of the image.
        second: the same of the other view.

    Returns:
        `(B, 4)` twice, in parts of the first and of the second view; of no extent where they do not meet.
    """
    start = torch.maximum(first[:, :2], second[:, :2])
    end = torch.maximum(torch.minimum(first[:, 2:], second[:, 2:]), start)
    seen = []
    for view in (first, second):
        origin, extent = view[:, :2], (view[:, 2:] - view[:, :2])
        seen.append(torch.cat([(start - origin) / extent, (end - origin) / extent], 1))
    return seen[0], seen[1]


def aligned(maps: Tensor, boxes: Tensor) -> Tensor:
    """Cells of a part of each map, bilinearly: `(B, D, h, w)` and `(B, 4)` in parts of the map -> `(B, D, 7, 7)`."""
    sides = boxes.new_tensor([maps.shape[-1], maps.shape[-2]]).repeat(2)
    rows = torch.cat([torch.arange(len(maps), device=maps.device)[:, None], boxes * sides], 1)
    found: Tensor = roi_align(maps.float(), rows.float(), _GRID, aligned=True)
    return found


def foreground_of(attention: Tensor, *, mass: float, blur: float) -> Tensor:
    """Cells that get most of the class token's attention.

    Args:
        attention: `(B, h, w)` >= 0.
        mass: the fewest cells that hold this part of it, in (0, 1].
        blur: standard deviation of a Gaussian before, in cells.

    Returns:
        `(B, h, w)` bool, at least one cell of each image.

    Source: Leopart (arXiv:2204.13101), published code, after DINO (arXiv:2104.14294).
    """
    smooth = image.gaussian_blur(attention[:, None].float(), [7, 7], [blur, blur]) if blur > 0 else attention[:, None]
    flat = smooth.float().flatten(1)
    share, order = (flat / flat.sum(1, keepdim=True).clamp_min(1e-12)).sort(1, descending=True)
    kept = share.cumsum(1) - share < mass  # of each cell what the larger ones hold
    return torch.zeros_like(kept).scatter_(1, order, kept).view_as(attention)


def assign(scores: Tensor, *, epsilon: float) -> Tensor:
    """Shares of prototypes in tokens, all prototypes used alike: `(N, K)` cosines -> `(N, K)`, rows sum to 1.

    Source: SwAV (arXiv:2006.09882).
    Differs: the transport converges; published are three iterations.
    """
    with torch.no_grad():
        return transport_posterior(scores.float().T, epsilon=epsilon, stopping="marginal").T


class Target(NamedTuple):
    """What the teacher says of the cells of one large view.

    Args:
        shares: `(B, K, h, w)` of prototypes, 0 in the background.
        foreground: `(B, h, w)` bool.
        boxes: `(B, 4)` of the view, in parts of the image.
    """

    shares: Tensor
    foreground: Tensor
    boxes: Tensor


def view_loss(target: Target, cosines: Tensor, boxes: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of another view's predictions where it meets the foreground of the target's view.

    Args:
        target: see `Target`; no gradient flows into it.
        cosines: `(B, K, h', w')` of the student's cells with the prototypes.
        boxes: `(B, 4)` of this view.
        temperature: > 0.

    Returns:
        its sum over the cells that count, and their number: of 7 x 7 cells of each overlap those that lie in the
        foreground wholly.

    Source: Leopart (arXiv:2204.13101), Eq. 2-3 and published code.
    """
    here, there = overlap_boxes(target.boxes, boxes)
    with torch.no_grad():
        wanted = aligned(target.shares, here)
        inside = aligned(target.foreground[:, None].float(), here)[:, 0]
        counts = inside > 1 - 1e-4  # (B, 7, 7); False where the views do not meet: no cell is taken there
    predicted = F.log_softmax(aligned(cosines, there) / temperature, 1)
    losses = -(wanted * predicted).sum(1)
    return torch.where(counts, losses, 0.0).sum(), counts.sum()
