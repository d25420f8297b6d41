"""A frozen backbone and a head on its features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhr_lightning.models.backbones import FrozenEncoder, is_encoder
from dhr_lightning.models.fitted import FITTED
from dhr_lightning.models.patches import PatchEncoder
from dhr_lightning.models.stego import StegoHead
from dhr_lightning.models.vit import FrozenViT
from dhr_lightning.ops.resize import resize_maps, resize_to_multiple

HEADS: dict[str, type[nn.Module]] = {**FITTED, "stego": StegoHead}


class USSNetwork(nn.Module):
    """Frozen backbone and head.

    Args:
        backbone: `patches`, an encoder of `build_encoder`, or a timm vision transformer.
        head: a name in `HEADS`; `none` for a subclass that has its own.
        pretrained: `false`, `true` (by name) or a path; ignored by `patches`.
        dimension: channels D of the code.

    Attributes:
        source: what the backbone reads: `pixels` (uint8) or `image` (normalised).
        cell: pixels per feature cell, of the sides of an image.
    """

    def __init__(self, backbone: str, head: str, *, pretrained: bool | str, dimension: int) -> None:
        super().__init__()
        self.backbone: PatchEncoder | FrozenEncoder | FrozenViT
        if backbone == "patches":
            self.backbone = PatchEncoder()
        elif is_encoder(backbone):
            self.backbone = FrozenEncoder(backbone, pretrained=pretrained)
        else:
            self.backbone = FrozenViT(backbone, pretrained=pretrained)
        if head in HEADS:
            self.head = HEADS[head](self.backbone.out_channels, dimension)
        self.source = "pixels" if isinstance(self.backbone, PatchEncoder) else "image"
        self.cell = self.backbone.cell

    def features(self, images: Tensor, *, scale: float = 1.0) -> Tensor:
        """Frozen features `(B, F, h, w)` of images without padding, `(B, 3, H, W)`; cells lie evenly over the image."""
        return self.backbone(resize_to_multiple(images, self.cell, scale=scale))

    def code(self, features: Tensor) -> Tensor:
        """`(B, F, h, w)` -> code `(B, D, h, w)` float32, whatever the precision of the backbone."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def multi_scale(self, images: Tensor, scales: Sequence[float], *, flip: bool) -> Tensor:
        """Mean code `(B, D, h, w)` of images without padding at several sizes, on the grid of the first.

        Args:
            images: `(B, 3, H, W)`.
            scales: relative sizes.
            flip: average each size with its mirror.

        Source: features of DHR (arXiv:2404.00380), published code.
        """
        codes = []
        for scale in scales:
            code = self.code(self.features(images, scale=scale))
            if flip:
                code = (code + self.code(self.features(images.flip(-1), scale=scale)).flip(-1)) / 2
            codes.append(code)
        grid = (codes[0].shape[-2], codes[0].shape[-1])
        return torch.stack([resize_maps(code, grid) for code in codes]).mean(0)
