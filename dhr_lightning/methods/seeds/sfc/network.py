"""A classifier beside prototypes of its classes: two maps of every image."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.classifier import CAMClassifier
from dhr_lightning.ops.pixel_correlation import pixel_correlation

_EPS = 1e-5
_WIDTHS = (128, 128, 256, 256)
_SEED_BACKGROUND = 0.3  # of the classifier's background, where seeds of the prototypes are chosen


class Parts(NamedTuple):
    """What both maps are made of; those of an image and its mirror may be added.

    Args:
        raw: `(B, T, h, w)` maps of the classifier.
        deep: `(B, F, h, w)` last feature map.
        levels: `(B, 768, h, w)` four feature maps, each projected to unit length.
        image: `(B, 3, h, w)`.
    """

    raw: Tensor
    deep: Tensor
    levels: Tensor
    image: Tensor

    def plus_mirrored(self, other: "Parts") -> "Parts":
        """Sum with the parts of the mirrored image."""
        return Parts(*(one + two.flip(-1) for one, two in zip(self, other, strict=True)))


class SFCNetwork(CAMClassifier):
    """CAM classifier, an embedding for pixel correlation, and projections of four stages.

    Args:
        backbone: see `build_encoder`.
        num_tags: number of foreground classes T.
        **options: see `CAMClassifier`.

    Source: SFC (AAAI 2024) and its code, on any encoder.
    """

    def __init__(self, backbone: str, num_tags: int, **options: Any) -> None:
        super().__init__(backbone, num_tags, **options)
        channels = [int(size) for size in cast("list[int]", self.encoder.out_channels)[-4:]]
        self.sides = nn.ModuleList(
            nn.Conv2d(size, width, 1, bias=False) for size, width in zip(channels, _WIDTHS, strict=True)
        )
        self.embed = nn.Conv2d(3 + channels[-1], channels[-1], 1, bias=False)

    def parts(self, image: Tensor) -> Parts:
        """`(B, 3, H, W)` normalised -> what both maps are made of; the projections send no gradient to the encoder."""
        features = self.encoder(image)[-4:]
        deep = features[-1]
        grid = (deep.shape[-2], deep.shape[-1])
        levels = []
        for layer, one in zip(self.sides, features, strict=True):
            side = layer(one.detach())
            side = side / (side.norm(dim=1, keepdim=True) + _EPS)
            levels.append(F.interpolate(side, grid, mode="bilinear", align_corners=False))
        small = F.interpolate(image, grid, mode="bilinear", align_corners=True)
        return Parts(self.classifier(deep), deep, torch.cat(levels, dim=1), small)

    def maps(
        self, parts: Parts, tags: Tensor, valid: Tensor, *, prototypes: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Maps of the classifier and of the prototypes, each `(B, 1 + T, h, w)` in [0, 1] with the background first.

        Args:
            parts: of the image.
            tags: `(B, T)` multi-hot; other classes are 0 throughout.
            valid: `(B, h, w)` bool, cells inside the image.
            prototypes: whether the second is wanted.
        """
        start = start_maps(parts.raw, tags, valid)
        embedding = self.embed(torch.cat([parts.image, parts.deep], dim=1))
        by_weights = pixel_correlation(start, embedding, valid=valid, repeat=2)
        by_weights = by_weights * valid[:, None]
        return by_weights, prototype_maps(by_weights, parts.levels, valid) if prototypes else None


def start_maps(raw: Tensor, tags: Tensor, valid: Tensor) -> Tensor:
    """Background and normalised maps of the tags: `(B, T, h, w)` -> `(B, 1 + T, h, w)` in [0, 1], 0 outside.

    Source: SFC, Eq. 2.
    Differs: the background is one minus the largest map of a tag; the code takes all classes, of which absent ones are
        scaled to 1, too.
    """
    inside = valid[:, None]
    positive = raw.float().relu() * tags[:, :, None, None] * inside
    normal = positive / (positive.amax((2, 3), keepdim=True) + _EPS)
    return torch.cat([1 - normal.amax(1, keepdim=True), normal], dim=1) * inside


def prototype_maps(maps: Tensor, levels: Tensor, valid: Tensor) -> Tensor:
    """Rectified cosine of every pixel with the mean feature of each class.

    Args:
        maps: `(B, 1 + T, h, w)`, background first; the strongest class of a pixel makes it a seed of that class.
        levels: `(B, D, h, w)`.
        valid: `(B, h, w)` bool.

    Returns:
        `(B, 1 + T, h, w)` in [0, 1]; 0 for a class without seeds. No gradient reaches `maps`.

    Source: SFC, Eq. 3-4; two matrix products in place of features repeated for each class.
    """
    scaled = torch.cat([maps[:, :1] * _SEED_BACKGROUND, maps[:, 1:]], dim=1).detach()
    classes = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
    seeds = (scaled.argmax(1, keepdim=True) == classes) & valid[:, None]  # (B, 1 + T, h, w)
    flat = levels.float().flatten(2)  # (B, D, P)
    prototypes = F.normalize(seeds.flatten(2).to(flat.dtype) @ flat.transpose(1, 2), dim=2)  # (B, 1 + T, D)
    cosine = (prototypes @ flat) / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return cosine.relu().view(maps.shape)
