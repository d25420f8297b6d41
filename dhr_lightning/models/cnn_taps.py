"""Taps of convolutional networks: the map before each halving, brought to one grid."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dhr_lightning.errors import ConfigError
from dhr_lightning.models.backbones import STRIDE_8, build_encoder, is_encoder
from dhr_lightning.models.weights import create_timm

_PROBE = 64  # side of the image that tells strides and channels


class StageTaps(nn.Module):
    """Stages of a convolutional network, area-averaged or bilinearly enlarged to one grid.

    Cell (i, j) of stride s begins at pixel (s i, s j), which is where masks expect it. What it looks at is centred up
    to half a cell before its middle with symmetric padding (ResNets), and as far behind it with that of TensorFlow.

    Args:
        name: a name of `build_encoder`, or a timm name.
        taps: `stage1`..`stage5`; stage k has stride 2^k (`small32`: at most 8).
        pretrained: only `True` fetches weights here.
        cell: pixels between two cells of the grid.

    Attributes:
        network: what weights are loaded into.
        sizes: channels by tap.

    Raises:
        ConfigError: if the network is unknown or has no such stage.
    """

    def __init__(self, name: str, *, taps: Sequence[str], pretrained: bool | str, cell: int = 16) -> None:
        super().__init__()
        self.cell = cell
        self.network, self.places = _build(name, taps, pretrained)
        self.network.eval()
        with torch.no_grad():
            maps = self.network(torch.zeros(1, 3, _PROBE, _PROBE))
        self.sizes = {tap: int(maps[place].shape[1]) for tap, place in self.places.items()}
        self.strides = {tap: _PROBE // int(maps[place].shape[-1]) for tap, place in self.places.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`(B, 3, H, W)` normalised, sides multiples of `cell` -> `(B, D, H / cell, W / cell)` by tap."""
        grid = (image.shape[-2] // self.cell, image.shape[-1] // self.cell)
        maps = self.network(image.contiguous(memory_format=torch.channels_last))
        return {tap: to_grid(maps[place], self.strides[tap] / self.cell, grid) for tap, place in self.places.items()}


def to_grid(maps: Tensor, ratio: float, grid: tuple[int, int]) -> Tensor:
    """Bring a map to a grid that starts at the same corner.

    Args:
        maps: `(B, D, h, w)`; its last cells may reach beyond the grid.
        ratio: cells of the grid that one of its cells is wide: a power of two.
        grid: rows and columns of the result.

    Returns:
        `(B, D, *grid)`; the mean of the cells inside, or bilinear between their middles.
    """
    if ratio < 1:
        return F.avg_pool2d(maps, round(1 / ratio))[..., : grid[0], : grid[1]]
    if ratio > 1:
        size = [round(side * ratio) for side in maps.shape[-2:]]
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps[..., : grid[0], : grid[1]]


def _build(name: str, taps: Sequence[str], pretrained: bool | str) -> tuple[nn.Module, dict[str, int]]:
    """The network without what runs behind the last tap, and the place of each tap among its maps."""
    by_name = pretrained is True
    if is_encoder(name):
        places = _places(name, taps, {f"stage{level}": level for level in range(1, 6)})
        stride = 8 if name in STRIDE_8 else 32
        depth = max(3, *places.values())
        return build_encoder(name, pretrained=by_name, output_stride=stride, depth=depth), places
    kind = "network with feature maps"
    whole = create_timm(name, pretrained=False, kind=kind, features_only=True)
    strides = whole.feature_info.reduction()
    if getattr(whole, "output_fmt", "NCHW") == "NHWC" or strides != sorted(set(strides)):
        raise ConfigError(f"{name!r} is neither a plain vision transformer nor a convolutional network. Use one.")
    levels = {f"stage{stride.bit_length() - 1}": level for level, stride in enumerate(strides)}
    places = _places(name, taps, levels)
    wanted = sorted(set(places.values()))
    network = create_timm(name, pretrained=by_name, kind=kind, features_only=True, out_indices=tuple(wanted))
    return network, {tap: wanted.index(place) for tap, place in places.items()}


def _places(name: str, taps: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    for tap in taps:
        if tap not in known:
            raise ConfigError(f"{name!r} has no tap {tap!r}. It has: {', '.join(known)}.")
    return {tap: known[tap] for tap in taps}
