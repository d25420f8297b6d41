"""What belongs to a set of weights: how its images are prepared, its licence, and what supervised it (no torch)."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from dhr_lightning.errors import CheckpointError, ConfigError

log = logging.getLogger("dhr_lightning")

Colours = tuple[float, float, float]
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
SUPERVISIONS = {
    "language": "language-supervised",
    "self": "self-supervised",
    "labels": "supervised by image labels",
    "unknown": "supervision unknown",
}

# Parts of a timm tag, what supervised such weights, and what people call it; the first part found counts. Fine-tuning
# on labels comes last in training, so it comes first here.
_TAGS: tuple[tuple[str, str, str], ...] = (
    ("_ft_in", "labels", "fine-tuned on ImageNet"),
    ("openai", "language", "CLIP, OpenAI"),
    ("metaclip", "language", "MetaCLIP"),
    ("tinyclip", "language", "TinyCLIP"),
    ("mclip", "language", "MobileCLIP"),
    ("laion", "language", "CLIP on LAION"),
    ("merged2b", "language", "EVA-CLIP"),
    ("datacomp", "language", "CLIP on DataComp"),
    ("dfn", "language", "CLIP on DFN"),
    ("webli", "language", "SigLIP on WebLI"),
    ("siglip", "language", "SigLIP"),
    ("pali", "language", "PaliGemma"),
    ("ogvl", "language", "OpenVision"),
    ("cc12m", "language", "CLIP on CC12M"),
    ("ssl_yfcc", "unknown", ""),
    ("yfcc15m", "language", "CLIP on YFCC15M"),
    ("eupe", "unknown", ""),  # distilled from several teachers
    ("dinov3", "self", "DINOv3"),
    ("dino", "self", "DINO"),
    ("lvd142m", "self", "DINOv2"),
    ("lvd1689m", "self", "DINOv3"),
    ("sat493m", "self", "DINOv3 on satellite images"),
    ("ijepa", "self", "I-JEPA"),
    ("mae", "self", "MAE"),  # and `fcmae` of ConvNeXt V2
    ("seer", "self", "SEER"),
    ("mim_", "unknown", ""),  # masked images; the target is often a language-supervised network
    ("in1k", "labels", "ImageNet-1k"),
    ("in12k", "labels", "ImageNet-12k"),
    ("in21k", "labels", "ImageNet-21k"),
    ("in22k", "labels", "ImageNet-22k"),
    ("inw21k", "labels", "ImageNet-21k"),
    ("jft", "labels", "JFT"),
    ("bamboo", "labels", "Bamboo"),
)


@dataclass(frozen=True)
class WeightsCard:
    """How images are prepared for a set of weights, and where the weights come from.

    Args:
        mean: of red, green and blue in [0, 1].
        std: the same; > 0.
        interpolation: with which images were resized in training, one of `INTERPOLATIONS`.
        licence: of the weights, as their source states it; empty if it does not.
        supervision: `language`, `self`, `labels` or `unknown`.
        source: what people call it, such as `CLIP, OpenAI`; may be empty.
    """

    mean: Colours
    std: Colours
    interpolation: str = "bilinear"
    licence: str = ""
    supervision: str = "unknown"
    source: str = ""

    @property
    def words(self) -> str:
        """For people: `language-supervised (CLIP, OpenAI)`."""
        return SUPERVISIONS[self.supervision] + (f" ({self.source})" if self.source else "")


IMAGENET_CARD = WeightsCard((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "", "labels", "ImageNet-1k")


def supervision_of(tag: str) -> tuple[str, str]:
    """What supervised the weights of a timm tag, and what people call it; `("unknown", "")` for other tags."""
    for part, supervision, source in _TAGS:
        if part in tag:
            return supervision, source
    return "unknown", ""


def card_of(name: str, pretrained: bool | str = True) -> WeightsCard:
    """Card of the weights that a backbone starts from.

    Args:
        name: timm name with its tag (without one, timm's first tag counts), `tu-` and such a name, or a name that only
            segmentation-models-pytorch or this package knows, whose images are normalised as in ImageNet.
        pretrained: `False` (random weights), `True` (by name), or the file; what a card beside it, `FILE.json`, says
            overrides the name.

    Raises:
        CheckpointError: if the card beside a file cannot be used.
        ConfigError: if timm knows the architecture but not the tag.
    """
    card, tag = named_card(name)
    if pretrained is False:
        return replace(card, licence="", supervision="unknown", source="random weights")
    if tag and not name.endswith(f".{tag}"):
        log.info("%s names no weights: the card of %s.%s counts (%s)", name, name, tag, card.words)
    beside = card_file(pretrained) if isinstance(pretrained, str) else None
    return read_card(beside, card) if beside is not None and beside.is_file() else card


def card_file(weights: str | Path) -> Path:
    """Where the card of a file of weights lies: `FILE.json` beside it."""
    return Path(f"{weights}.json")


@cache
def named_card(name: str) -> tuple[WeightsCard, str]:
    """Card of a name, and the tag that it says or stands for."""
    import timm  # imports torch
    from segmentation_models_pytorch.encoders import encoders

    timm_name = name.removeprefix("tu-").removeprefix("timm-")
    architecture, _, tag = timm_name.partition(".")
    if (name in encoders and timm_name == name) or not timm.is_model(architecture):
        return IMAGENET_CARD, ""
    try:
        config = timm.get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        known = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        raise ConfigError(f"timm knows no weights {tag!r} of {architecture!r}, only {', '.join(known)}.") from error
    if config is None:
        return IMAGENET_CARD, ""
    tag = tag or config.tag or ""
    supervision, source = supervision_of(tag)
    card = WeightsCard(config.mean, config.std, config.interpolation, config.license or "", supervision, source)
    return card, tag


def read_card(path: Path, default: WeightsCard) -> WeightsCard:
    """Read a card; what it does not say stays as in `default`.

    Raises:
        CheckpointError: names the file and the first entry that cannot be used.
    """
    try:
        entries: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Card {path} cannot be read ({error}). Correct it or remove it.") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"Card {path} holds no entries by name. Write {{{_example()}}}.")
    for key, value in entries.items():
        expected, fits = _ENTRIES.get(key, (f"one of {', '.join(_ENTRIES)} as its name", lambda _: False))
        if not fits(value):
            raise CheckpointError(f"Card {path}: entry {key!r} is {value!r}, but expected {expected}. Correct it.")
    return replace(
        default, **{key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
    )


def _example() -> str:
    return '"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "supervision": "self"'


def _three(low: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:  # noqa: ANN401 - what a file says
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        return numbers and len(value) == 3 and all(low <= one <= 1 for one in value)

    return fits


def _text(value: Any) -> bool:  # noqa: ANN401 - what a file says
    return isinstance(value, str)


_ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mean": ("three numbers in [0, 1]", _three(0.0)),
    "std": ("three numbers in (0, 1]", _three(1e-6)),
    "interpolation": (f"one of {', '.join(INTERPOLATIONS)}", lambda value: value in INTERPOLATIONS),
    "licence": ("a text", _text),
    "supervision": (f"one of {', '.join(SUPERVISIONS)}", lambda value: value in tuple(SUPERVISIONS)),
    "source": ("a text", _text),
}
assert list(_ENTRIES) == [field.name for field in fields(WeightsCard)]
