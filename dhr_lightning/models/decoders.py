"""Decoders by name: DeepLabv1, v2 and v3+ as the methods publish them, and those of segmentation-models-pytorch."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import STRIDE_8
from dhr_lightning.models.deeplab import AtrousSum, DeepLabDecoder, LargeFOV

DEEPLAB = "deeplabv3plus"
OURS = {DEEPLAB: DeepLabDecoder, "deeplabv1": LargeFOV, "deeplabv2": AtrousSum}
# DPT reads the tokens of a ViT, not feature maps of several strides.
_ARCHITECTURES = {name: a for name, a in smp.MODEL_ARCHITECTURES_MAPPING.items() if name not in (*OURS, "dpt")}
MASK2FORMER = "mask2former"  # has a network of its own, see `models.mask2former`
NAMES = (*OURS, *sorted(_ARCHITECTURES))
# Arguments of a decoder that the segmenter decides.
_DECIDED = {"encoder_name", "encoder_depth", "encoder_weights", "encoder_output_stride", "in_channels", "classes"}
_DECIDED |= {
    "self",
    "num_classes",
    "activation",
    "aux_params",
    "upsampling",
    "kwargs",
    "encoder_channels",
    "output_stride",
}


def encoder_stride(decoder: str, output_stride: int, *, backbone: str) -> int:
    """Output stride that the encoder of a decoder needs: the one asked for where it can be chosen, else 32.

    Args:
        decoder: see `NAMES`.
        output_stride: what is asked for.
        backbone: name of the encoder.

    Raises:
        ConfigError: if the decoder is unknown or the encoder has no map of stride 32.
    """
    if decoder not in NAMES:
        closest = difflib.get_close_matches(decoder.lower().replace("_", ""), (*NAMES, MASK2FORMER), n=1)
        hint = f" Did you mean {closest[0]!r}?" if closest else ""
        raise ConfigError(f"Unknown decoder {decoder!r}.{hint} Known: {', '.join((*NAMES, MASK2FORMER))}.")
    # PSPNet reads the last feature map only, so that its stride is free.
    free = decoder in (*OURS, "pspnet") or "encoder_output_stride" in _arguments(_ARCHITECTURES[decoder])
    if not free and backbone in STRIDE_8:
        raise ConfigError(
            f"Decoder {decoder!r} needs strides up to 32, but backbone {backbone!r} ends at 8. Use deeplabv3plus."
        )
    return output_stride if free else 32


def build_decoder(
    decoder: str, backbone: str, encoder: nn.Module, num_classes: int, *, stride: int, options: Mapping[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """Decoder and classification layer for an encoder.

    Args:
        decoder: see `NAMES`.
        backbone: name of the encoder.
        encoder: what it was built to.
        num_classes: segmentation classes C.
        stride: output stride of the encoder, see `encoder_stride`.
        options: further arguments of the decoder.

    Returns:
        The decoder, which takes the list of feature maps, and the convolution that makes logits of its result.

    Raises:
        ConfigError: if an option is unknown or out of range, or encoder and decoder do not go together.
    """
    known = sorted(_arguments(OURS.get(decoder) or _ARCHITECTURES[decoder]) - _DECIDED)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise unknown_options(decoder, unknown, known)
    if decoder in OURS:
        network = OURS[decoder](encoder.out_channels, num_classes=num_classes, output_stride=stride, **options)
        return network, network.head()
    architecture = _ARCHITECTURES[decoder]
    extra = {"encoder_output_stride": stride} if "encoder_output_stride" in _arguments(architecture) else {}
    try:
        model = architecture(backbone, encoder_depth=5, encoder_weights=None, classes=num_classes, **extra, **options)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"Decoder {decoder!r} cannot be built on backbone {backbone!r} ({error}).") from error
    return model.decoder, model.segmentation_head[0]


def unknown_options(decoder: str, unknown: Sequence[str], known: Sequence[str]) -> ConfigError:
    """The error for options that a decoder does not have, which may come from an earlier layer of the configuration."""
    names = ", ".join(map(repr, unknown))
    return ConfigError(
        f"Unknown option {names} of decoder {decoder!r}. Known: {', '.join(known)}. If the recipe sets it for another "
        "decoder, set it to null."
    )


def _arguments(architecture: type) -> set[str]:
    return set(inspect.signature(architecture.__init__).parameters)
