"""The one dataset class: records plus whatever artifacts a task asks for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from dhr_lightning.artifacts.arrays import read_features
from dhr_lightning.artifacts.files import read_mask
from dhr_lightning.artifacts.kinds import ArtifactKind
from dhr_lightning.data.catalog import ClassSet, Record, tags_to_multi_hot
from dhr_lightning.data.files import check_mask, read_gt_mask, read_image
from dhr_lightning.data.frozen_features import FeatureReader
from dhr_lightning.data.sample import GridMaps, Sample
from dhr_lightning.data.transforms import Augmentation, whole_image

PathOf = Callable[[str], Path]
GT_MASK = "gt_mask"  # no port is called so


class Source(NamedTuple):
    """Where the files of an input are.

    Args:
        kind: what they are.
        path: file of an image, by its id.
        channels: ranges of the channels of features to read; default all.
        live: what computes features whose files hold none.
    """

    kind: ArtifactKind
    path: PathOf
    channels: tuple[slice, ...] | None = None
    live: FeatureReader | None = None

    def features(self, record: Record) -> npt.NDArray[np.float16]:
        """Features `(D, h, w)` of an image, those channels that are asked for."""
        if self.live is None:
            return read_features(self.path(record.id), self.channels)
        computed: npt.NDArray[np.float16] = self.live.read(record)["features"].numpy()
        return computed if self.channels is None else np.concatenate([computed[part] for part in self.channels])


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Randomness of one training sample, which thus depends on these three alone."""
    return torch.Generator().manual_seed(hash((seed, epoch, index)) & 0x7FFFFFFF)


class SegmentationDataset(Dataset[Sample]):
    """Images with tags and, on request, what earlier steps made of them.

    Args:
        records: images of one split.
        classes: class list.
        augmentation: random crop, or `None` for whole images.
        inputs: where to find each input, by port.
        gt_mask: also load the ground truth, for evaluation and full supervision.
        seed: with epoch and index, the only source of randomness.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: ClassSet,
        *,
        augmentation: Augmentation | None = None,
        inputs: Mapping[str, Source] | None = None,
        gt_mask: bool = False,
        seed: int = 0,
    ) -> None:
        self.records, self.classes, self.augmentation = list(records), classes, augmentation
        self.inputs, self.gt_mask, self.seed = dict(inputs or {}), gt_mask, seed

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
        if GT_MASK in targets:
            sample["gt_mask"] = targets.pop(GT_MASK)
        if self.inputs:
            others = {port: self._read(port, record) for port in self.inputs if port not in targets}
            sample["inputs"] = {**targets, **others}
        return sample

    def _read_masks(self, record: Record, size: tuple[int, int]) -> dict[str, npt.NDArray[np.uint8]]:
        masks: dict[str, npt.NDArray[np.uint8]] = {}
        for port, source in self.inputs.items():
            if source.kind.geometry == "nearest":
                path = source.path(record.id)
                masks[port] = check_mask(read_mask(path), path=path, size=size, classes=self.classes)
        truth = read_gt_mask(record) if self.gt_mask else None
        if truth is not None and record.gt_mask is not None:
            masks[GT_MASK] = check_mask(truth, path=record.gt_mask, size=size, classes=self.classes)
        return masks

    def _read(self, port: str, record: Record) -> GridMaps:
        """Maps on a grid over the whole image: features, or class scores in the order of the tags."""
        source = self.inputs[port]
        if source.kind.role == "features":
            return GridMaps(torch.from_numpy(source.features(record).astype(np.float32)), source.kind.geometry)
        keys, maps = source.kind.codec.read(source.path(record.id))
        place = {int(key): index for index, key in enumerate(keys)}
        own = np.zeros((len(record.tags), *maps.shape[1:]), np.float32)  # a class that the file lacks has no score
        for row, tag in enumerate(record.tags):
            if tag in place:
                own[row] = maps[place[tag]]
        return GridMaps(torch.from_numpy(own), source.kind.geometry)
