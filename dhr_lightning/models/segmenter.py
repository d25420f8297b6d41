"""Segmentation network with an optional CAM head on the same encoder."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.losses.pixels import cell_loss, segmentation_loss
from dhr_lightning.models.backbones import build_encoder
from dhr_lightning.models.decoders import DEEPLAB, OURS, build_decoder, encoder_stride
from dhr_lightning.models.deeplab import undilate_first_blocks


class SegmenterOutput(NamedTuple):
    """What one forward pass gives.

    Args:
        decoder_logits: `(B, C, h, w)` segmentation logits at the size at which the decoder ends.
        cam: `(B, T, h', w')` raw class activation maps, or `None` without a CAM head.
        features: encoder features, finest first; the last two are what DHR calls C4 and C5.
        stride: pixels between two cells of `decoder_logits`; 4 for DeepLabv3+.
        size: height and width of the image in pixels; `None` if they are `stride` times those of `decoder_logits`.
        queries: what Mask2Former's losses need, see `models.mask2former.QueryOutput`; `None` for other segmenters.
    """

    decoder_logits: Tensor
    cam: Tensor | None
    features: list[Tensor]
    stride: int = 1
    size: tuple[int, int] | None = None
    queries: Any = None

    @property
    def logits(self) -> Tensor:
        """`(B, C, H, W)` segmentation logits at image size, interpolated at each access."""
        height, width = (side * self.stride for side in self.decoder_logits.shape[-2:])
        logits = F.interpolate(self.decoder_logits, (height, width), mode="bilinear", align_corners=False)
        height, width = self.size or (height, width)
        return logits[..., :height, :width]


@dataclass(frozen=True)
class SegmenterConfig:
    """Architecture of a `Segmenter` and the weights it starts from, whatever the classes.

    Args:
        backbone: encoder name, see `build_encoder`.
        pretrained: `False`, `True` (ImageNet, by name) or a path, see `build_encoder`.
        output_stride: 8 or 16; for decoders that need feature maps up to stride 32 it is 32 whatever is given.
        decoder: `deeplabv1`, `deeplabv2`, `deeplabv3plus`, or the name of another architecture of
            segmentation-models-pytorch, such as `fpn`; `mask2former` is built by `models.networks.build_segmenter`.
        decoder_options: further arguments of that decoder; of the DeepLabs see `models.deeplab`.
    """

    backbone: str = "resnet101"
    pretrained: bool | str = False
    output_stride: int = 8
    decoder: str = DEEPLAB
    decoder_options: dict[str, Any] | None = None


class Segmenter(nn.Module):
    """An encoder, a decoder and, for DHR, a CAM head.

    Args:
        config: architecture and initial weights.
        num_classes: segmentation classes C, background included.
        num_tags: tags T for a CAM head; 0 for none.

    Raises:
        ConfigError: if the decoder or backbone is unknown, or they do not go together.

    Source: DeepLabv3+ (arXiv:1802.02611) as published with DHR (arXiv:2404.00380), whose CAM head is a 1x1 convolution
        without bias on C5.
    Differs: DHR halves C5 before the CAM head at output stride 8; here the map keeps the resolution of C5 (the seeds
        can be made as published, see `methods.masks.dhr.task.DHRTask`).
    """

    def __init__(self, config: SegmenterConfig, num_classes: int, *, num_tags: int = 0) -> None:
        super().__init__()
        backbone, decoder, options = config.backbone, config.decoder, config.decoder_options or {}
        # Pixels between two cells of the last feature map; sides of the image are padded to a multiple of it.
        self.divisor = encoder_stride(decoder, config.output_stride, backbone=backbone)
        self.encoder = build_encoder(backbone, pretrained=config.pretrained, output_stride=self.divisor)
        if decoder in OURS:
            undilate_first_blocks(self.encoder)
        self.decoder, self.head = build_decoder(
            decoder, backbone, self.encoder, num_classes, stride=self.divisor, options=options
        )
        channels = self.encoder.out_channels[-1]
        self.classifier = nn.Conv2d(channels, num_tags, 1, bias=False) if num_tags else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, image: Tensor) -> SegmenterOutput:
        """`(B, 3, H, W)` normalised -> `SegmenterOutput`; sides that the stride does not divide are zero-padded."""
        height, width = image.shape[-2:]
        # no negative operands: an exported graph divides them towards zero
        right, below = ((self.divisor - length % self.divisor) % self.divisor for length in (width, height))
        padded = F.pad(image, (0, right, 0, below))
        features = self.encoder(padded)
        logits = self.head(self.decoder(features)).float()  # (B, C, h, w)
        stride = padded.shape[-1] // logits.shape[-1]
        logits = logits[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
        cam = self.classifier(features[-1]) if self.classifier is not None else None
        return SegmenterOutput(logits, cam, features, stride, (height, width))

    def loss(
        self, output: SegmenterOutput, mask: Tensor, *, size: str, ignore_index: int, weight: Tensor | None = None
    ) -> Tensor:
        """Cross entropy on masks of the image.

        Args:
            output: of this network.
            mask: `(B, H, W)` int64 class values.
            size: `decoder` compares the logits where the decoder ends, stride 4 for DeepLabv3+, with the pixel in the
                middle of each of their cells (`losses.pixels.cell_loss`); `full` interpolates the logits to every
                pixel.
            ignore_index: pixels without a label.
            weight: `(B, H, W)` of each pixel; default 1.
        """
        if size == "full":
            return segmentation_loss(output.logits, mask, ignore_index=ignore_index, weight=weight)
        return cell_loss(output.decoder_logits, mask, stride=output.stride, ignore_index=ignore_index, weight=weight)


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
