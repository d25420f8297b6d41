"""Normalisation of images, the same for every task."""

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(pixels: Tensor, valid: Tensor) -> Tensor:
    """ImageNet normalisation of uint8 `(B, 3, H, W)` -> float32, zero where `valid` `(B, H, W)` is False."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    image = pixels.to(torch.float32, memory_format=torch.channels_last)  # in place from here
    return image.div_(255).sub_(mean).div_(std).mul_(valid[:, None])
