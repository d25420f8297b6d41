"""Mask2Former on any encoder: queries that each predict a class and a mask."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError, DependencyError
from dhr_lightning.models.backbones import STRIDE_8, build_encoder
from dhr_lightning.models.decoders import MASK2FORMER, unknown_options
from dhr_lightning.models.segmenter import SegmenterConfig, SegmenterOutput

STRIDE, _DIVISOR = 4, 32
_TINY = 1e-8  # of a score whose logarithm is taken


@dataclass(frozen=True)
class QueryOptions:
    """Sizes of the part behind the encoder; the defaults are the published ones.

    Args:
        queries: number of queries, at least that of the classes of an image.
        width: channels of every map and query.
        heads: of each attention; divides `width`.
        feedforward: channels inside the layers of the pixel decoder; twice as many inside those of the queries.
        pixel_layers: layers of the pixel decoder.
        query_layers: layers that the queries pass, each with its own predictions and losses.
        points: points of each mask that the losses look at.
    """

    queries: int = 100
    width: int = 256
    heads: int = 8
    feedforward: int = 1024
    pixel_layers: int = 6
    query_layers: int = 9
    points: int = 12544


@dataclass(frozen=True)
class QueryOutput:
    """Predictions of all layers of the queries, the last one last.

    Args:
        classes: `(B, Q, C + 1)` logits of each layer; the last class is none.
        masks: `(B, Q, h, w)` logits of each layer.
    """

    classes: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]


class Mask2Former(nn.Module):
    """An encoder, Mask2Former's decoders and losses, and, for DHR, a CAM head.

    It takes the place of a `Segmenter`: `decoder_logits` are the logarithm of the scores of the classes, at stride 4.

    Args:
        config: `backbone` is any encoder with maps of strides 4, 8, 16 and 32, published with Swin (`tu-swin_...`);
            `decoder_options` are fields of `QueryOptions`.
        num_classes: segmentation classes C, background included.
        num_tags: tags T for a CAM head; 0 for none.

    Raises:
        ConfigError: if an option is unknown or out of range, or the encoder lacks one of the maps.
        DependencyError: if `transformers`, whose layers and losses these are, is not installed.

    Source: Mask2Former (arXiv:2112.01527), as the last segmenter of DHR (arXiv:2404.00380).
    Differs: scores are divided by their sum in each pixel, so that views of an image count alike in an average.
    """

    def __init__(self, config: SegmenterConfig, num_classes: int, *, num_tags: int = 0) -> None:
        super().__init__()
        options = _options(config.decoder_options or {})
        self.divisor = _DIVISOR
        stride = 8 if config.backbone in STRIDE_8 else _DIVISOR
        self.encoder = build_encoder(config.backbone, pretrained=config.pretrained, output_stride=stride)
        channels = [int(size) for size in cast("list[int]", self.encoder.out_channels)]
        if config.backbone in STRIDE_8 or 0 in channels[-4:]:
            raise ConfigError(
                "Mask2Former needs an encoder with feature maps of strides 4, 8, 16 and 32, which "
                f"{config.backbone!r} has not. Take a ResNet or tu-swin_..."
            )
        self.decoder = _QueryDecoder(channels[-4:], num_classes, options)
        self.classifier = nn.Conv2d(channels[-1], num_tags, 1, bias=False) if num_tags else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, image: Tensor) -> SegmenterOutput:
        """`(B, 3, H, W)` normalised -> `SegmenterOutput`; sides that 32 does not divide are zero-padded."""
        height, width = image.shape[-2:]
        right, below = ((_DIVISOR - length % _DIVISOR) % _DIVISOR for length in (width, height))
        features = self.encoder(F.pad(image, (0, right, 0, below)))
        found = self.decoder(features[-4:])
        logits = class_scores(found).clamp_min(_TINY).log()
        logits = logits[..., : -(-height // STRIDE), : -(-width // STRIDE)]
        cam = self.classifier(features[-1]) if self.classifier is not None else None
        return SegmenterOutput(logits, cam, features, STRIDE, (height, width), found)

    def loss(
        self, output: SegmenterOutput, mask: Tensor, *, size: str, ignore_index: int, weight: Tensor | None = None
    ) -> Tensor:
        """Losses of classes and masks over all layers, after queries and classes of an image are matched.

        Args:
            output: of this network.
            mask: `(B, H, W)` int64 class values. Every class of an image is one mask; ignored pixels belong to none,
                as in the published code. An image without any label teaches its queries that they are none.
            size: not used, the losses look at points.
            ignore_index: pixels without a label.
            weight: must be `None`.
        """
        if weight is not None:
            raise ConfigError("Mask2Former has no weights of pixels. Take another decoder for this step.")
        if output.queries is None:
            raise ValueError("Expected `output` of Mask2Former, but it has no queries.")
        return self.decoder.loss(output.queries, mask, ignore_index=ignore_index)


class _QueryDecoder(nn.Module):
    """Pixel decoder, queries and losses, with the layers of `transformers`."""

    def __init__(self, channels: list[int], num_classes: int, options: QueryOptions) -> None:
        super().__init__()
        theirs, pixel_decoder = _load()
        model = theirs(_their_config(options, num_classes))
        self.pixels = pixel_decoder(model.config, feature_channels=channels)
        self.pixels.apply(model._init_weights)  # as `transformers` starts its own
        self.queries = model.model.transformer_module
        self.classes = model.class_predictor
        self.criterion = model.criterion
        self.weights = dict(model.weight_dict)

    def forward(self, features: list[Tensor]) -> QueryOutput:
        """Maps of strides 4, 8, 16, 32 -> predictions of every layer."""
        with torch.autocast(features[0].device.type, enabled=False):
            pixels = self.pixels([one.float() for one in features], output_hidden_states=False)
            found = self.queries(
                multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features,
                output_hidden_states=True,
            )  # fmt: skip
            classes = tuple(self.classes(one.transpose(0, 1)) for one in found.intermediate_hidden_states)
        return QueryOutput(classes, tuple(found.masks_queries_logits))

    def loss(self, found: QueryOutput, mask: Tensor, *, ignore_index: int) -> Tensor:
        """See `Mask2Former.loss`."""
        values = [one.unique() for one in mask]
        labels = [one[one != ignore_index] for one in values]
        masks = [(one[None] == value[:, None, None]).float() for one, value in zip(mask, labels, strict=True)]
        parts: dict[str, Tensor] = self.criterion(
            masks_queries_logits=found.masks[-1], class_queries_logits=found.classes[-1], mask_labels=masks,
            class_labels=labels,
            auxiliary_predictions=[
                {"masks_queries_logits": some, "class_queries_logits": other}
                for some, other in zip(found.masks[:-1], found.classes[:-1], strict=True)
            ],
        )  # fmt: skip
        weighted = [self.weights[_family(name, self.weights)] * value for name, value in parts.items()]
        return torch.stack(weighted).sum()


def class_scores(found: QueryOutput) -> Tensor:
    """Scores `(B, C, h, w)` in [0, 1] that sum to 1 over C: queries vote with their classes where their masks are."""
    with torch.autocast(found.masks[-1].device.type, enabled=False):
        votes = found.classes[-1].float().softmax(-1)[..., :-1]  # (B, Q, C)
        scores = torch.einsum("bqc,bqhw->bchw", votes, found.masks[-1].float().sigmoid())
    return scores / scores.sum(1, keepdim=True).clamp_min(_TINY)


def _family(name: str, weights: dict[str, float]) -> str:
    return next(key for key in weights if key in name)


def check_mask2former(option: str) -> None:
    """Look for the packages that Mask2Former needs.

    Args:
        option: what asks for them, for the message.

    Raises:
        DependencyError: names the one that is missing, and the extra.
    """
    for package in ("transformers", "scipy"):  # scipy matches queries and classes
        if find_spec(package) is None:
            raise DependencyError(
                f"{package} is not installed, but `{option}` is 'mask2former'. Run `pip install "
                "'dhr-lightning[mask2former]'`, or choose another decoder."
            )


def _load() -> tuple[Any, Any]:
    """Model and pixel decoder of `transformers`."""
    check_mask2former("decoder")
    from transformers import Mask2FormerForUniversalSegmentation
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    return Mask2FormerForUniversalSegmentation, Mask2FormerPixelDecoder


def _their_config(options: QueryOptions, num_classes: int) -> Any:  # noqa: ANN401 - of transformers
    """Configuration of their model, with an encoder as small as can be, which is not used."""
    from transformers import Mask2FormerConfig, SwinConfig

    stages = [f"stage{number}" for number in range(1, 5)]
    unused: Any = SwinConfig(  # type: ignore[call-arg] # their types lack fields of theirs
        embed_dim=4, depths=[1] * 4, num_heads=[1] * 4, out_features=stages
    )
    return Mask2FormerConfig(  # type: ignore[call-arg]
        backbone_config=unused, num_labels=num_classes, num_queries=options.queries, hidden_dim=options.width,
        feature_size=options.width, mask_feature_size=options.width, num_attention_heads=options.heads,
        encoder_feedforward_dim=options.feedforward, dim_feedforward=2 * options.feedforward,
        encoder_layers=options.pixel_layers, decoder_layers=options.query_layers + 1, train_num_points=options.points,
    )  # fmt: skip


def _options(given: dict[str, Any]) -> QueryOptions:
    """Checked options."""
    known = asdict(QueryOptions())
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise unknown_options(MASK2FORMER, unknown, list(known))
    options = QueryOptions(**given)
    wrong = [name for name, value in asdict(options).items() if value < 1]
    if wrong:
        raise ConfigError(f"Expected decoder_options.{wrong[0]} >= 1, but got {asdict(options)[wrong[0]]}.")
    if options.width % (2 * options.heads):
        raise ConfigError(
            f"Expected decoder_options.width to be a multiple of twice its {options.heads} heads, but got "
            f"{options.width}."
        )
    return options
