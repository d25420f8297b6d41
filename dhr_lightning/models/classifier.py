"""Multi-label classifier whose last layer is a class activation map."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.models.backbones import build_encoder


class CAMClassifier(nn.Module):
    """Encoder, then a 1x1 convolution without bias; the logit of a class is the mean of its map.

    Args:
        backbone: encoder name, see `build_encoder`.
        num_tags: number of foreground classes T.
        pretrained: see `build_encoder`.
        output_stride: 8 or 16.
        dilation: see `build_encoder`.

    Source: Zhou et al. 2016 (arXiv:1512.04150), Eq. 1-2, in the convolutional form used by IRNet (arXiv:1904.05044).
    """

    def __init__(
        self,
        backbone: str,
        num_tags: int,
        *,
        pretrained: bool | str = False,
        output_stride: int = 16,
        dilation: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(backbone, pretrained=pretrained, output_stride=output_stride, dilation=dilation)
        channels = self.encoder.out_channels[-1]
        self.classifier = nn.Conv2d(channels, num_tags, 1, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` -> raw class activation maps `(B, T, h, w)`."""
        return self.classifier(self.encoder(image)[-1])


def masked_mean(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of `(B, T, h, w)` over the valid pixels `(B, H, W)` of the crop -> `(B, T)`: padding has no vote.

    Source: DHR averages over the pasted crop only (arXiv:2404.00380).
    """
    if valid is None:
        return maps.mean((2, 3))
    weight = F.adaptive_avg_pool2d(valid[:, None].float(), maps.shape[-2:])  # (B, 1, h, w)
    return (maps.float() * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-6)


def multi_scale_cam(
    network: Callable[[Tensor], Tensor], image: Tensor, *, scales: tuple[float, ...], flip: bool, size: tuple[int, int]
) -> Tensor:
    """Sum of ReLU class activation maps over scales and horizontal flip.

    Args:
        network: maps `(B, 3, H, W)` to raw maps `(B, T, h, w)`.
        image: `(B, 3, H, W)` normalised, or more channels if the network takes them.
        scales: relative image sizes.
        flip: add the mirrored view of every scale.
        size: height and width of the result, in cells.

    Returns:
        `(B, T, *size)` non-negative, not normalised.

    Source: IRNet (arXiv:1904.05044), make_cam.
    """
    total = torch.zeros(1, device=image.device)
    for scale in scales:
        side = [max(1, round(length * scale)) for length in image.shape[-2:]]
        view = image if scale == 1.0 else F.interpolate(image, side, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            maps = network(view.flip(-1) if mirrored else view).float().relu()
            maps = maps.flip(-1) if mirrored else maps
            total = total + F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return total


def published_cam(classifier: nn.Module, feature: Tensor, *, stride: int) -> Tensor:
    """Class activation maps of one view at stride 16, as DHR makes the CAM behind its seeds.

    Args:
        classifier: maps features to raw maps, cell by cell.
        feature: `(B, F, h, w)`, the last feature map.
        stride: pixels between two of its cells; a stride below 16 is brought to 16 before the classifier.

    Returns:
        `(B, T, h', w')` non-negative, not normalised.

    Source: published code of DHR (arXiv:2404.00380): C5 of stride 8 is halved with aligned corners.
    """
    if stride < 16:
        size = [max(1, side * stride // 16) for side in feature.shape[-2:]]
        feature = F.interpolate(feature, size, mode="bilinear", align_corners=True)
    return classifier(feature).float().relu()
