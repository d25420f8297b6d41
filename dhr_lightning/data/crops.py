"""Five crops of each image, cut on the fly, and pairs of similar ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.data.dataset import sample_generator
from dhr_lightning.data.files import check_mask, read_gt_mask, read_image
from dhr_lightning.data.sample import Geometry, Sample
from dhr_lightning.errors import ConfigError

CROPS = 5  # of each image: four corners and the centre


class Crop(NamedTuple):
    """One of the five crops of an image."""

    image: int
    place: int  # 0..3 top left, top right, bottom left, bottom right; 4 centre


@dataclass(frozen=True)
class FiveCrop:
    """Square crops of the corners and the centre of an image, without padding, mirror or colour jitter.

    Args:
        crop_size: side of the result in pixels.
        ratio: side of the part that is cut relative to that of the image, in (0, 1]; of this part the central square
            is taken, as resizing its short side to `crop_size` and cutting the centre does.

    Raises:
        ConfigError: if a value is out of range.

    Source: STEGO (arXiv:2203.08414), published code: five-crop, resize of the short side, centre crop.
    Differs: one resize with anti-aliasing, bilinear; published are copies on disk, resized to the nearest pixel, which
        changes features more when a crop moves a little, see docs/method.md.
    """

    crop_size: int = 224
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.crop_size < 1 or not 0 < self.ratio <= 1:
            raise ConfigError(f"Expected crop_size >= 1 and 0 < ratio <= 1, but got {self.crop_size}, {self.ratio}.")

    def __call__(self, image: Image.Image, place: int) -> tuple[Tensor, Geometry]:
        """Cut one crop: pixels `(3, S, S)` uint8 and where they come from."""
        width, height = image.size
        box = self.box(image.size, place)
        side = box[2] - box[0]
        patch = image.resize((self.crop_size, self.crop_size), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(patch)).permute(2, 0, 1).contiguous()
        scale = self.crop_size / side
        return pixels, Geometry(box, (0, 0, self.crop_size, self.crop_size), (scale, scale), False, (height, width))

    def cut_mask(self, mask: NDArray[np.uint8], place: int) -> Tensor:
        """The same crop of a mask `(H, W)`: class values `(S, S)` int64 of the nearest pixels."""
        image, size = Image.fromarray(mask), (self.crop_size, self.crop_size)
        patch = image.resize(size, Image.Resampling.NEAREST, box=self.box(image.size, place))
        return torch.from_numpy(np.array(patch)).long()

    def box(self, size: tuple[int, int], place: int) -> tuple[float, float, float, float]:
        """`(x0, y0, x1, y1)` in pixels of an image of `(width, height)`; a square inside the image."""
        parts = [max(1, int(length * self.ratio)) for length in size]
        room = [length - part for length, part in zip(size, parts, strict=True)]
        share = (0.5, 0.5) if place == CROPS - 1 else (place % 2, place // 2)
        side = min(parts)
        x, y = (r * s + (part - side) / 2 for r, s, part in zip(room, share, parts, strict=True))
        return x, y, x + side, y + side


class FiveCrops(Dataset[Sample]):
    """All crops of all images, five in a row for each image.

    Args:
        records: images.
        classes: class list.
        augmentation: how crops are cut.
        gt_mask: also cut the ground truth of images that have one.
    """

    def __init__(
        self, records: Sequence[Record], classes: ClassSet, augmentation: FiveCrop, *, gt_mask: bool = False
    ) -> None:
        self.records, self.classes, self.augmentation = list(records), classes, augmentation
        self.gt_mask = gt_mask

    def __len__(self) -> int:
        return CROPS * len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Crop `index`: place `index % 5` of image `index // 5`."""
        crop = Crop(*divmod(index, CROPS))
        record = self.records[crop.image]
        pixels, geometry = self.augmentation(read_image(record.image), crop.place)
        tags = torch.from_numpy(tags_to_multi_hot(record.tags, self.classes))
        valid = torch.ones(pixels.shape[-2:], dtype=torch.bool)
        sample = Sample(id=record.id, pixels=pixels, valid=valid, tags=tags, geometry=geometry)
        truth = read_gt_mask(record) if self.gt_mask else None
        if truth is not None and record.gt_mask is not None:
            height, width = geometry.size
            mask = check_mask(truth, path=record.gt_mask, size=(width, height), classes=self.classes)
            sample["gt_mask"] = self.augmentation.cut_mask(mask, crop.place)
        return sample


class CropPairs(Dataset[Sample]):
    """All crops of all images, each with a random one of its nearest neighbours once these are known.

    Args:
        crops: where they come from.
        neighbours: `(5 N, n)` indices of similar crops.
        seed: with epoch and index, the only source of randomness.

    Source: STEGO (arXiv:2203.08414), published code.
    """

    def __init__(self, crops: FiveCrops, *, neighbours: Tensor | None = None, seed: int = 0) -> None:
        self.crops, self.neighbours, self.seed = crops, neighbours, seed
        self.augmentation = crops.augmentation

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Crop `index`, or `(epoch, index)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.crops[index]
        if self.neighbours is not None:
            row = self.neighbours[index]
            draw = torch.randint(len(row), (), generator=sample_generator(self.seed, epoch, index))
            sample["neighbour"] = self.crops[int(row[draw])]["pixels"]
        return sample
