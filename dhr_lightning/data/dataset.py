"""The one dataset class: records plus whatever artifacts a task asks for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from dhr_lightning.artifacts.files import read_features, read_mask
from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.data.files import check_mask, read_image, read_truth
from dhr_lightning.data.sample import Sample
from dhr_lightning.data.transforms import Augmentation, whole_image

PathOf = Callable[[str], Path]


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Randomness of one training sample, which thus depends on these three alone."""
    return torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFFFFFF)


class SegmentationDataset(Dataset[Sample]):
    """Images with tags and, on request, masks and features made by earlier steps.

    Args:
        records: images of one split.
        classes: class list.
        augmentation: random crop, or `None` for whole images.
        masks: where to find the masks to train on, by image id.
        features: where to find USS features, by image id.
        truth: also load the ground truth (evaluation only).
        seed: with epoch and index, the only source of randomness.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: ClassSet,
        *,
        augmentation: Augmentation | None = None,
        masks: PathOf | None = None,
        features: PathOf | None = None,
        truth: bool = False,
        seed: int = 0,
    ) -> None:
        self.records, self.classes, self.augmentation = list(records), classes, augmentation
        self.masks, self.features, self.truth, self.seed = masks, features, truth, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Sample `index`, or `(epoch, index)` for augmented data."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        image = read_image(record.image)
        masks = self._read_masks(record, image.size)
        if self.augmentation is None:
            pixels, valid, targets, geometry = whole_image(image, masks)
        else:
            generator = sample_generator(self.seed, epoch, index)
            pixels, valid, targets, geometry = self.augmentation(image, masks, generator)
        tags = torch.from_numpy(tags_to_multi_hot(record.tags, self.classes))
        sample = Sample(id=record.id, pixels=pixels, valid=valid, tags=tags, geometry=geometry)
        if "mask" in targets:
            sample["mask"] = targets["mask"]
        if "truth" in targets:
            sample["truth"] = targets["truth"]
        if self.features is not None:
            sample["uss"] = torch.from_numpy(read_features(self.features(record.id)).astype(np.float32))
        return sample

    def _read_masks(self, record: Record, size: tuple[int, int]) -> dict[str, npt.NDArray[np.uint8]]:
        masks: dict[str, npt.NDArray[np.uint8]] = {}
        if self.masks is not None:
            path = self.masks(record.id)
            masks["mask"] = check_mask(read_mask(path), path=path, size=size, classes=self.classes)
        if self.truth and record.mask is not None:
            masks["truth"] = check_mask(read_truth(record.mask), path=record.mask, size=size, classes=self.classes)
        return masks
