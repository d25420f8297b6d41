"""Correspondence distillation: constants, pairs and loss of STEGO."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError, check_keys

PAIRS = ("intra", "inter", "negative")  # an image with itself, with a neighbour, with another image of the batch


@dataclass(frozen=True)
class StegoSettings:
    """Every constant of STEGO's training but those of the optimiser.

    Attributes:
        shifts: b of intra, inter and negative pairs; features that correspond more than b attract.
        weights: weights of the three losses.
        points: points sampled in each crop, per axis.
        negatives: random pairings of the batch whose losses are averaged.
        neighbours: nearest crops of other images that count as positives.
        crop_size: side of a crop in pixels, a multiple of the backbone's patch.
        crop_ratio: side of each of the five crops relative to the image, in (0, 1].

    Raises:
        ConfigError: if a value is out of range.

    Source: STEGO (arXiv:2203.08414), published configuration (crops, points, pairs).
    """

    shifts: tuple[float, float, float]
    weights: tuple[float, float, float]
    points: int = 11
    negatives: int = 5
    neighbours: int = 7
    crop_size: int = 224
    crop_ratio: float = 0.5

    def __post_init__(self) -> None:
        for name in ("shifts", "weights"):
            if len(getattr(self, name)) != len(PAIRS):
                raise ConfigError(
                    f"Expected stego.{name} to be three numbers ({', '.join(PAIRS)}), but got {getattr(self, name)}."
                )
        for name in ("points", "negatives", "neighbours", "crop_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected stego.{name} >= 1, but got {getattr(self, name)}.")
        if not 0 < self.crop_ratio <= 1:
            raise ConfigError(f"Expected stego.crop_ratio in (0, 1], but got {self.crop_ratio}.")


# The rows of STEGO's published configuration file, named by data set and backbone: intra, inter, negative.
PRESETS = {
    "iaroa_vit_s": StegoSettings(weights=(0.67, 0.25, 0.63), shifts=(0.18, 0.12, 0.46)),
    "potsdam_vit_s": StegoSettings(weights=(0.67, 0.25, 0.63), shifts=(0.08, 0.02, 0.46)),
    "cocostuff_vit_s": StegoSettings(weights=(0.67, 0.25, 0.63), shifts=(0.08, 0.02, 0.66)),
    "cocostuff_vit_s_older": StegoSettings(weights=(0.67, 0.25, 0.63), shifts=(0.08, 0.02, 0.16)),
    "cocostuff_vit_b": StegoSettings(weights=(0.1, 1.0, 0.15385), shifts=(0.12, 0.2, 1.0)),
    "cityscapes_vit_b": StegoSettings(weights=(1.0, 0.57745, 0.90588), shifts=(0.45828, 0.17543, 0.31361)),
    "cityscapes_older": StegoSettings(weights=(0.46, 0.18, 0.72), shifts=(0.25, 0.2, 0.25)),
}


def stego_settings(preset: str = "cocostuff_vit_b", **changes: Any) -> StegoSettings:
    """Settings of a preset, with changes.

    Args:
        preset: name of a row of the published configuration file, see `PRESETS`; choose the row of your backbone.
        **changes: fields of `StegoSettings` that differ.

    Raises:
        ConfigError: if the preset, a field or a value cannot be used.
    """
    if preset not in PRESETS:
        raise ConfigError(f"Expected stego.preset to be one of {', '.join(PRESETS)}, but got {preset!r}.")
    check_keys(changes, ["preset", *StegoSettings.__dataclass_fields__], "stego")
    return replace(PRESETS[preset], **changes)


class Maps(NamedTuple):
    """Frozen features `(B, F, h, w)` and codes `(B, D, h, w)` of a batch of crops."""

    features: Tensor
    codes: Tensor


class Draw(NamedTuple):
    """What is random in one step.

    Args:
        points: `(B, P, 2)` in [-1, 1], x first, in the anchors.
        other_points: `(B, P, 2)` in what they are paired with.
        negatives: `(N, B)` for each anchor another image of the batch, N times.
    """

    points: Tensor
    other_points: Tensor
    negatives: Tensor


class StegoLoss(NamedTuple):
    """Loss of one step, scalar, and the mean cosine of the codes of intra, inter and negative pairs, `(3,)`.

    Shifts suit the data while the cosines are ordered intra > inter > negative > 0; all near 0 or 1 is a collapse.
    """

    loss: Tensor
    cosines: Tensor


def random_partners(batch: int, count: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Give each image of a batch another one, `count` times -> `(count, batch)`; never itself.

    Each row is a random cycle through the batch, so every other image is equally likely.

    Raises:
        ValueError: if the batch has one image only.

    Source: negatives of STEGO (arXiv:2203.08414), published code.
    Differs: there fixed points of a random permutation move on by one: of 20,000 draws for 16 images 63 % give some
        image two partners and another none.
    """
    if batch < 2:
        raise ValueError(f"Expected `batch` >= 2, for a negative is another image, but got {batch}.")
    order = torch.rand(count, batch, device=device).argsort(1)  # random permutations
    return torch.empty_like(order).scatter_(1, order, order.roll(1, dims=1))


def draw_pairs(batch: int, settings: StegoSettings, *, device: torch.device | str = "cpu") -> Draw:
    """Draw uniform points and negatives for a batch of crops without padding."""
    points, other = (torch.rand(batch, settings.points**2, 2, device=device) * 2 - 1 for _ in range(2))
    return Draw(points, other, random_partners(batch, settings.negatives, device=device))


def sample_points(maps: Tensor, coordinates: Tensor) -> Tensor:
    """Sample `(B, D, h, w)` bilinearly at `(B, P, 2)` coordinates in [-1, 1] -> `(B, D, P)`, L2-normalised over D."""
    points = F.grid_sample(maps.float(), coordinates[:, None], padding_mode="border", align_corners=True)[:, :, 0]
    return F.normalize(points, dim=1, eps=1e-10)


def correspondence_loss(
    features: Tensor, other_features: Tensor, code: Tensor, other_code: Tensor, *, shift: float
) -> Tensor:
    """Pull codes together where frozen features correspond more than `shift`, push them apart elsewhere.

    Args:
        features: `(B, F, P)` unit features of the anchors at P points; no gradient flows into them.
        other_features: `(B, F, P)` unit features of the partners.
        code: `(B, D, P)` unit codes of the anchors.
        other_code: `(B, D, P)` unit codes of the partners.
        shift: `b`; feature correspondence above it attracts.

    Returns:
        Scalar mean over the batch and all pairs of points.

    Source: STEGO (arXiv:2203.08414), Eq. 4 with spatial centring (Eq. 5) and clamp at zero; the mean that centring
        removes is given back as the mean of the whole batch (published code).
    """
    with torch.no_grad():
        similarity = features.transpose(1, 2) @ other_features  # (B, P, P)
        similarity = similarity - similarity.mean(2, keepdim=True) + similarity.mean()
    agreement = (code.transpose(1, 2) @ other_code).clamp(min=0)
    return -(agreement * (similarity - shift)).mean()


def stego_loss(anchors: Maps, neighbours: Maps, draw: Draw, settings: StegoSettings) -> StegoLoss:
    """Weighted sum of the losses of intra, inter and negative pairs.

    Args:
        anchors: maps of the crops.
        neighbours: maps of one neighbour of each.
        draw: points and negatives. An anchor meets itself at its own points, all others at `other_points`.
        settings: shifts and weights.

    Source: STEGO (arXiv:2203.08414), Eq. 6; losses of the negative pairings are averaged (published code).
    """
    anchor = _at(anchors, draw.points)
    negatives = [_at(Maps(*(maps[index] for maps in anchors)), draw.other_points) for index in draw.negatives]
    partners = ([anchor], [_at(neighbours, draw.other_points)], negatives)
    losses, cosines = [], []
    for others, shift in zip(partners, settings.shifts, strict=True):
        terms = [
            correspondence_loss(anchor.features, other.features, anchor.codes, other.codes, shift=shift)
            for other in others
        ]
        losses.append(torch.stack(terms).mean())
        cosines.append(torch.stack([_mean_cosine(anchor.codes, other.codes) for other in others]).mean())
    weights = torch.tensor(settings.weights, device=losses[0].device)
    return StegoLoss((weights * torch.stack(losses)).sum(), torch.stack(cosines))


def _at(maps: Maps, points: Tensor) -> Maps:
    return Maps(*(sample_points(values, points) for values in maps))  # (B, F, P), (B, D, P)


@torch.no_grad()
def _mean_cosine(code: Tensor, other: Tensor) -> Tensor:
    """Mean over all pairs of points, which is the product of the means: `(B, D, P)` twice -> scalar."""
    return (code.mean(2) * other.mean(2)).sum(1).mean()
