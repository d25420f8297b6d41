"""Normalisation of images, as the weights of the running task want it."""

import torch
from torch import Tensor

from dhr_lightning.models.cards import IMAGENET_CARD, WeightsCard

IMAGENET_MEAN, IMAGENET_STD = IMAGENET_CARD.mean, IMAGENET_CARD.std


def normalize(pixels: Tensor, valid: Tensor, card: WeightsCard = IMAGENET_CARD) -> Tensor:
    """Normalise uint8 `(B, 3, H, W)` -> float32, zero where `valid` `(B, H, W)` is False.

    Args:
        pixels: in [0, 255].
        valid: bool, pixels inside the image.
        card: mean and std of red, green and blue in [0, 1], as the weights of the running task want them.
    """
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (card.mean, card.std))
    image = pixels.to(torch.float32, memory_format=torch.channels_last)  # in place from here
    return image.div_(255).sub_(mean).div_(std).mul_(valid[:, None])
