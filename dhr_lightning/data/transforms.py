"""Joint transforms of image and masks; every crop returns the geometry that made it."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as color

from dhr_lightning.data.catalog import IGNORE_INDEX
from dhr_lightning.data.sample import Geometry
from dhr_lightning.errors import ConfigError

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Augmentation:
    """Random scale, mirror, colour jitter and crop for training.

    Args:
        crop_size: side of the square canvas in pixels.
        scale: range of the resize factor, or of the long side in pixels when both numbers exceed 10.
        flip: probability of a left-right mirror.
        jitter: strengths of brightness, contrast, saturation and hue; zeros for none.
        interpolation: `bilinear` or `bicubic`, of the image; masks take the nearest pixel.

    Raises:
        ConfigError: if a range or name is not usable.

    Source: defaults of DHR's training (arXiv:2404.00380); bicubic and without jitter in IRNet (arXiv:1904.05044).
    """

    crop_size: int = 512
    scale: tuple[float, float] = (320, 640)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise ConfigError(
                f"Expected data.interpolation to be {' or '.join(_FILTERS)}, but got {self.interpolation!r}."
            )
        if self.crop_size < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"Expected crop_size > 0 and 0 < scale[0] <= scale[1], but got {self.crop_size}, {self.scale}."
            )

    def __call__(
        self, image: Image.Image, masks: dict[str, np.ndarray], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Geometry]:
        """Augment one image and its masks alike.

        Args:
            image: RGB photo.
            masks: uint8 `(H, W)` class values by name.
            generator: the only source of randomness, so that a sample depends on seed, epoch and index alone.

        Returns:
            pixels `(3, S, S)` uint8, valid `(S, S)` bool, masks `(S, S)` int64, geometry.
        """
        draw = torch.rand(8, generator=generator).tolist()
        width, height = self._resized(image.size, draw[0])
        flip = draw[1] < self.flip
        box, destination = self._boxes(width, height, draw[2], draw[3])
        geometry = self._geometry(image.size, (width, height), box, destination, flip)
        cut = geometry.source
        side = (destination[2] - destination[0], destination[3] - destination[1])
        patch = image.resize(side, _FILTERS[self.interpolation], box=cut)
        pixels = jittered(torch.from_numpy(np.array(patch)).permute(2, 0, 1), self.jitter, draw[4:])
        canvas = torch.zeros(3, self.crop_size, self.crop_size, dtype=torch.uint8)
        valid = torch.zeros(self.crop_size, self.crop_size, dtype=torch.bool)
        left, top, right, bottom = destination
        canvas[:, top:bottom, left:right] = pixels.flip(-1) if flip else pixels
        valid[top:bottom, left:right] = True
        targets = {}
        for name, mask in masks.items():
            piece = torch.from_numpy(np.array(Image.fromarray(mask).resize(side, Image.Resampling.NEAREST, box=cut)))
            target = torch.full((self.crop_size, self.crop_size), IGNORE_INDEX, dtype=torch.int64)
            target[top:bottom, left:right] = (piece.flip(-1) if flip else piece).long()
            targets[name] = target
        return canvas, valid, targets, geometry

    def _resized(self, size: tuple[int, int], draw: float) -> tuple[int, int]:
        value = self.scale[0] + draw * (self.scale[1] - self.scale[0])
        factor = value / max(size) if self.scale[0] > 10 else value
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))

    def _boxes(
        self, width: int, height: int, draw_x: float, draw_y: float
    ) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Crop box in the resized image and its place on the canvas; smaller images are pasted at random."""
        spans = []
        for length, draw in ((width, draw_x), (height, draw_y)):
            room = length - self.crop_size
            offset = round(abs(room) * draw)
            side = min(length, self.crop_size)
            spans.append((offset, 0, side) if room >= 0 else (0, offset, side))
        (sx, dx, w), (sy, dy, h) = spans
        return (sx, sy, sx + w, sy + h), (dx, dy, dx + w, dy + h)

    @staticmethod
    def _geometry(
        size: tuple[int, int],
        resized: tuple[int, int],
        box: tuple[int, int, int, int],
        destination: tuple[int, int, int, int],
        flip: bool,
    ) -> Geometry:
        """Express a box of the resized (then mirrored) image in original pixels."""
        scale = (resized[0] / size[0], resized[1] / size[1])
        x0, x1 = (resized[0] - box[2], resized[0] - box[0]) if flip else (box[0], box[2])
        source = (x0 / scale[0], box[1] / scale[1], min(x1 / scale[0], size[0]), min(box[3] / scale[1], size[1]))
        return Geometry(source, destination, scale, flip, (size[1], size[0]))


def jittered(pixels: Tensor, strengths: tuple[float, float, float, float], draw: list[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue of `(3, H, W)` uint8.

    Args:
        pixels: `(3, H, W)` uint8.
        strengths: of each; zeros for none.
        draw: four numbers in [0, 1); 0.5 changes nothing.
    """
    brightness, contrast, saturation, hue = ((2 * d - 1) * j for d, j in zip(draw, strengths, strict=True))
    if brightness:
        pixels = color.adjust_brightness(pixels, 1 + brightness)
    if contrast:
        pixels = color.adjust_contrast(pixels, 1 + contrast)
    if saturation:
        pixels = color.adjust_saturation(pixels, 1 + saturation)
    return color.adjust_hue(pixels, hue) if hue else pixels


def whole_image(image: Image.Image, masks: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, dict[str, Tensor], Geometry]:
    """The unaugmented image in the form that `Augmentation` returns."""
    width, height = image.size
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    geometry = Geometry(
        (0.0, 0.0, float(width), float(height)), (0, 0, width, height), (1.0, 1.0), False, (height, width)
    )
    valid = torch.ones(height, width, dtype=torch.bool)
    targets = {name: torch.from_numpy(mask.astype(np.int64)) for name, mask in masks.items()}
    return pixels, valid, targets, geometry
