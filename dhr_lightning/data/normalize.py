"""Normalisation of images, as the weights of the running task want it."""

import torch
from torch import Tensor

from dhr_lightning.models.cards import IMAGENET_CARD, Colours

IMAGENET_MEAN, IMAGENET_STD = IMAGENET_CARD.mean, IMAGENET_CARD.std


def normalize(pixels: Tensor, valid: Tensor, *, mean: Colours = IMAGENET_MEAN, std: Colours = IMAGENET_STD) -> Tensor:
    """Normalise uint8 `(B, 3, H, W)` -> float32, zero where `valid` `(B, H, W)` is False.

    Args:
        pixels: in [0, 255].
        valid: bool, pixels inside the image.
        mean: of red, green and blue in [0, 1], see `models.cards.WeightsCard`.
        std: the same.
    """
    mean_map, std_map = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std))
    image = pixels.to(torch.float32, memory_format=torch.channels_last)  # in place from here
    return image.div_(255).sub_(mean_map).div_(std_map).mul_(valid[:, None])
