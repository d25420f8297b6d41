"""From a photo to features of a frozen backbone, in whichever process."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dhr_lightning.data.catalog import Record
from dhr_lightning.data.files import image_size, read_image
from dhr_lightning.data.normalize import normalize
from dhr_lightning.data.resizing import cell_grid, resize_to_cells
from dhr_lightning.errors import ConfigError, DataError
from dhr_lightning.models.taps import TapEncoder


@dataclass(frozen=True)
class FrozenSettings:
    """What features of a frozen backbone depend on, besides the photo.

    Args:
        backbone: name, see `models.taps.TapEncoder`.
        pretrained: `False`, `True` (by name) or a file of weights.
        taps: layers, in the order of their channels.
        side: long side of the resized photo in pixels; both sides are rounded to whole cells.
        scales: sizes relative to `side`, the first of which gives the grid; features of the others are resampled to it
            and averaged.
        flip: average with the features of the mirrored photo, mirrored back.
        normalize: scale every tap of every cell to a length of the square root of its channels. Cosines stay as they
            are; single tokens that are many times as long as the others no longer rule a linear head.
        compute: number type inside the backbone, `bfloat16` or `float32`.

    Raises:
        ConfigError: if a scale is not positive, or `side` is below 1.
    """

    backbone: str
    pretrained: bool | str = False
    taps: tuple[str, ...] = ()
    side: int = 448
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    normalize: bool = True
    compute: str = "bfloat16"

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or self.side < 1:
            raise ConfigError(f"Expected side >= 1 and scales > 0, but got {self.side} and {list(self.scales)}.")

    def encoder(self) -> TapEncoder:
        """The backbone.

        Raises:
            ConfigError: if none of the layers is a map; for more see `TapEncoder`.
        """
        network = TapEncoder(self.backbone, taps=self.taps, pretrained=self.pretrained, dtype=self.compute)
        if not network.channels:
            raise ConfigError(f"The taps of {self.backbone!r} ({', '.join(self.taps)}) hold no map. Name one more.")
        return network

    def record(self) -> dict[str, Any]:
        """As JSON keeps it; `recorded` is the inverse."""
        return asdict(self)


class FeatureReader:
    """Reads a photo at the sizes its backbone wants, and computes its features if it may.

    Args:
        network: frozen backbone.
        settings: of the features.
        computes: whether `read` computes features, or gives the normalised photo.
    """

    def __init__(self, network: TapEncoder, settings: FrozenSettings, *, computes: bool = True) -> None:
        self.network, self.settings, self.computes = network, settings, computes

    def grid(self, record: Record) -> tuple[int, int]:
        """Rows and columns of cells of a photo; only its header is read."""
        side = self.sides[0]
        return cell_grid(image_size(record.image), side=side, cell=self.network.cell, path=record.image)

    @property
    def sides(self) -> list[int]:
        """Long side of the resized photo in pixels, at every scale."""
        return [max(self.network.cell, round(self.settings.side * scale)) for scale in self.settings.scales]

    def images(self, record: Record) -> list[Tensor]:
        """The normalised photo `(3, H, W)` at every scale.

        Raises:
            DataError: if the photo cannot be read.
        """
        return self.images_of(read_image(record.image), record.image)

    def images_of(self, whole: Image.Image, path: Path) -> list[Tensor]:
        """The same of an RGB image that is read already; `path` is for messages."""
        cell, interpolation = self.network.cell, self.network.card.interpolation
        resized = [
            resize_to_cells(whole, side=side, cell=cell, interpolation=interpolation, path=path) for side in self.sides
        ]
        return [self._normalised(np.array(image)) for image in resized]

    def _normalised(self, pixels: np.ndarray[Any, Any]) -> Tensor:
        batch, card = torch.from_numpy(pixels).permute(2, 0, 1)[None], self.network.card
        inside = torch.ones(1, *batch.shape[-2:], dtype=torch.bool)
        return normalize(batch, inside, card)[0]

    @torch.no_grad()
    def features(self, images: Sequence[Tensor], record_of: str) -> Tensor:
        """Features `(D, h, w)` float16 of one photo at every scale, averaged over scales and mirror.

        Args:
            images: of `images`, on the device of the backbone.
            record_of: the photo, for the message.

        Raises:
            DataError: if they are not finite numbers in half precision.
        """
        features = self.maps(*(image[None] for image in images)).half()[0]
        if not bool(torch.isfinite(features).all()):
            raise DataError(f"The features of {record_of} are not finite. Look at the photo and at the weights.")
        return features

    def maps(self, *images: Tensor) -> Tensor:
        """Features `(B, D, h, w)` float32 of normalised photos `(B, 3, H, W)`, one batch for each scale."""
        maps = [self._maps(image) for image in images]
        grid = maps[0].shape[-2:]
        same = [maps[0], *(F.interpolate(one, grid, mode="bilinear", align_corners=False) for one in maps[1:])]
        return self._scaled(torch.stack(same).mean(0))

    def _scaled(self, maps: Tensor) -> Tensor:
        if not self.settings.normalize:
            return maps
        taps = torch.split(maps, list(self.network.channels.values()), dim=1)
        return torch.cat([F.normalize(tap, dim=1) * tap.shape[1] ** 0.5 for tap in taps], dim=1)

    def _maps(self, image: Tensor) -> Tensor:
        maps: Tensor = self.network(image)
        return (maps + self.network(image.flip(-1)).flip(-1)) / 2 if self.settings.flip else maps

    def read(self, record: Record) -> dict[str, Any]:
        """`{id: [id], features: (D, h, w) float16}`, or `images` of every scale in place of features."""
        images = self.images(record)
        if not self.computes:
            return {"id": [record.id], "images": images}
        return {"id": [record.id], "features": self.features(images, str(record.image))}


class FeatureDataset(Dataset[dict[str, Any]]):
    """What a `FeatureReader` makes of each record."""

    def __init__(self, records: Sequence[Record], reader: FeatureReader) -> None:
        self.records, self.reader = list(records), reader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one record."""
        return self.reader.read(self.records[index])


def recorded(settings: Mapping[str, Any]) -> FeatureReader:
    """A reader from what `FrozenSettings.record` gave; it is made once for each process.

    Raises:
        CheckpointError: if the file of weights is not there any more.
    """
    return _reader(json.dumps(settings, sort_keys=True))


@functools.lru_cache(maxsize=1)
def _reader(text: str) -> FeatureReader:
    content = json.loads(text)
    settings = FrozenSettings(**{**content, "taps": tuple(content["taps"]), "scales": tuple(content["scales"])})
    return FeatureReader(settings.encoder(), settings)
