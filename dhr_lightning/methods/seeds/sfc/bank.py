"""The latest training crop of every class, from which rare classes are sampled as often as frequent ones."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Crops(NamedTuple):
    """Training crops.

    Args:
        pixels: `(B, 3, H, W)` uint8.
        valid: `(B, H, W)` bool.
        tags: `(B, T)` multi-hot.
    """

    pixels: Tensor
    valid: Tensor
    tags: Tensor


class ImageBank(nn.Module):
    """One crop for each class; part of the state of its task, so that a resumed run continues with it.

    Args:
        tags: number of classes T.
        size: side of a crop in pixels.

    Source: image bank of SFC (AAAI 2024).
    Differs: crops are kept as bytes (63 MB in place of 500 for 20 classes of 512 px in float32 with their masks), and
        only slots that are filled are drawn, without repetition; the code draws empty images at the start.
    """

    pixels: Tensor
    valid: Tensor
    tags: Tensor
    filled: Tensor

    def __init__(self, tags: int, size: int) -> None:
        super().__init__()
        self.register_buffer("pixels", torch.zeros(tags, 3, size, size, dtype=torch.uint8))
        self.register_buffer("valid", torch.zeros(tags, size, size, dtype=torch.bool))
        self.register_buffer("tags", torch.zeros(tags, tags))
        self.register_buffer("filled", torch.zeros(tags, dtype=torch.bool))

    @torch.no_grad()
    def update(self, crops: Crops) -> None:
        """Put each crop into the slots of all its classes; the last one of a class stays."""
        present = crops.tags > 0  # (B, T)
        order = torch.arange(1, len(present) + 1, device=present.device)[:, None]
        latest = (present * order).amax(0)  # (T,): 1 + index of the last crop with the class, 0 for none
        seen = latest > 0
        chosen = (latest - 1).clamp_min(0)
        for slot, crop in ((self.pixels, crops.pixels), (self.valid, crops.valid), (self.tags, crops.tags)):
            new = crop[chosen].to(slot.dtype)
            slot.copy_(torch.where(seen.view(-1, *[1] * (slot.ndim - 1)), new, slot))
        self.filled |= seen

    def draw(self, count: int) -> Crops:
        """Crops of classes that are drawn uniformly among those that have been seen, at most `count`.

        The random numbers are those of the host, which a task seeds for each iteration.
        """
        slots = self.filled.nonzero()[:, 0]
        chosen = slots[torch.randperm(len(slots))[:count].to(slots.device)]
        return Crops(self.pixels[chosen], self.valid[chosen], self.tags[chosen])
