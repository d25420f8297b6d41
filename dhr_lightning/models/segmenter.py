"""Segmentation network with an optional CAM head on the same encoder."""

from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models import backbones

_DECODERS = {"deeplabv3plus": smp.DeepLabV3Plus, "fpn": smp.FPN, "unet": smp.Unet, "linknet": smp.Linknet}


class SegmenterOutput(NamedTuple):
    """What one forward pass gives.

    Args:
        logits: `(B, C, H, W)` segmentation logits at image size.
        cam: `(B, T, h, w)` raw class activation maps, or `None` without a CAM head.
        features: encoder features, finest first; the last two are what DHR calls C4 and C5.
    """

    logits: Tensor
    cam: Tensor | None
    features: list[Tensor]


class Segmenter(nn.Module):
    """An encoder, a decoder of segmentation-models-pytorch and, for DHR, a CAM head.

    Args:
        backbone: encoder name, see `build_encoder`.
        num_classes: segmentation classes C, background included.
        num_tags: tags T for a CAM head; 0 for none.
        decoder: `deeplabv3plus`, `fpn`, `unet` or `linknet`.
        decoder_options: further arguments of that decoder.
        pretrained: see `build_encoder`.
        output_stride: 8 or 16; DeepLabv3+ only, the other decoders need 32.

    Raises:
        ConfigError: if the decoder or backbone is unknown, or they do not go together.

    Source: DeepLabv3+ (arXiv:1802.02611); CAM head of DHR (arXiv:2404.00380), a 1x1 convolution without bias on C5.
    Differs: DHR halves C5 before the CAM head; here the map keeps the resolution of C5.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        num_tags: int = 0,
        decoder: str = "deeplabv3plus",
        decoder_options: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        output_stride: int = 16,
    ) -> None:
        super().__init__()
        if decoder not in _DECODERS:
            raise ConfigError(f"Unknown decoder {decoder!r}. Known: {', '.join(_DECODERS)}.")
        if backbone == "small32" and decoder != "deeplabv3plus":
            raise ConfigError(
                f"Decoder {decoder!r} needs strides up to 32, but backbone 'small32' ends at 8. Use deeplabv3plus."
            )
        options = dict(decoder_options or {})
        if decoder == "deeplabv3plus":
            options["encoder_output_stride"] = output_stride
        stride = output_stride if decoder == "deeplabv3plus" else 32
        self.encoder = backbones.build_encoder(backbone, pretrained=pretrained, output_stride=stride)
        network = _DECODERS[decoder](backbone, encoder_weights=None, classes=num_classes, **options)
        self.decoder, self.head = network.decoder, network.segmentation_head[0]
        channels = self.encoder.out_channels[-1]
        self.classifier = nn.Conv2d(channels, num_tags, 1, bias=False) if num_tags else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, image: Tensor) -> SegmenterOutput:
        """`(B, 3, H, W)` normalised, sides divisible by the stride -> `SegmenterOutput`."""
        features = self.encoder(image)
        logits = self.head(self.decoder(features))  # (B, C, H/4, W/4)
        logits = F.interpolate(logits.float(), image.shape[-2:], mode="bilinear", align_corners=False)
        cam = self.classifier(features[-1]) if self.classifier is not None else None
        return SegmenterOutput(logits, cam, features)


def multi_scale_probability(
    network: nn.Module, image: Tensor, *, scales: tuple[float, ...], flip: bool, divisor: int = 32
) -> Tensor:
    """Mean softmax over scales and horizontal flip.

    Args:
        network: a `Segmenter`.
        image: `(B, 3, H, W)` normalised.
        scales: relative image sizes; each side is rounded to a multiple of `divisor` pixels.
        flip: add the mirrored view of every scale.
        divisor: what the network's stride divides.

    Returns:
        `(B, C, H, W)`, sums to 1 over C.

    Source: test-time protocol of DHR (arXiv:2404.00380).
    """
    height, width = image.shape[-2:]
    total, views = torch.zeros(()), 0
    for scale in scales:
        side = [max(divisor, round(length * scale / divisor) * divisor) for length in (height, width)]
        view = F.interpolate(image, side, mode="bilinear", align_corners=False) if side != [height, width] else image
        for mirrored in (False, True) if flip else (False,):
            probability = network(view.flip(-1) if mirrored else view).logits.float().softmax(1)
            probability = probability.flip(-1) if mirrored else probability
            probability = F.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
            # A sum: the probabilities of all views together would not fit beside a network with many classes.
            total, views = (probability if not views else total + probability), views + 1
    return total / views
