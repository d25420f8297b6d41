"""What a model says about one image."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.artifacts.files import write_bytes, write_mask
from dhr_lightning.data.catalog import ClassSet

_BAND = 512  # rows
_OVERLAY = 0.55  # of the class colour over the photo


@dataclass(frozen=True)
class Prediction:
    """Mask and confidence of one image.

    Args:
        mask: `(H, W)` uint8 class values.
        confidence: `(H, W)` float32 in [0, 1], probability of the class in the mask.
        image: `(H, W, 3)` uint8 RGB, upright.
        class_set: class list with its colours.
        name: of the image, without suffix.
        tile: side in pixels of the tiles that it was made of because memory ran out; None otherwise.
    """

    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]
    class_set: ClassSet
    name: str = "image"
    tile: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class values, background first if there is one."""
        return self.class_set.names

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """`(256, 3)` uint8 RGB colour of each class value."""
        return self.class_set.palette

    def overlay(self) -> Image.Image:
        """The photo with the colours of the classes over it; background is left as it is."""
        drawn = self.image.copy()
        for rows in self._bands():
            mask, photo = self.mask[rows], self.image[rows]
            mixed = _OVERLAY * self.palette[mask].astype(np.float32) + (1 - _OVERLAY) * photo
            shown = mask >= self.class_set.offset
            drawn[rows][shown] = mixed[shown].round().astype(np.uint8)
        return Image.fromarray(drawn)

    def _bands(self) -> Iterator[slice]:
        """Rows in parts: whole panoramas in float would take gigabytes."""
        return (slice(top, top + _BAND) for top in range(0, len(self.mask), _BAND))

    def shares(self) -> list[dict[str, Any]]:
        """One row for each class in the mask: `class`, `pixels`, `share` of the image, mean `confidence` there."""
        counts, sums = np.zeros(256, np.int64), np.zeros(256)
        for rows in self._bands():
            values = self.mask[rows].ravel()
            counts += np.bincount(values, minlength=256)
            sums += np.bincount(values, weights=self.confidence[rows].ravel(), minlength=256)
        return [
            {
                "class": self.classes[value],
                "pixels": int(counts[value]),
                "share": round(float(counts[value] / self.mask.size), 6),
                "confidence": round(float(sums[value] / counts[value]), 4),
            }
            for value in np.flatnonzero(counts).tolist()
        ]

    def to_coco(self, *, image_id: int = 1, first: int = 1) -> list[dict[str, Any]]:
        """COCO annotations, one for each class in the mask, with lossless run lengths; background has none.

        Args:
            image_id: number of the image.
            first: number of the first annotation.
        """
        from pycocotools import mask as runs

        found: list[dict[str, Any]] = []
        for value in np.unique(self.mask).tolist():
            if value < self.class_set.offset or value >= len(self.classes):
                continue
            code = runs.encode(np.asfortranarray(self.mask == value))
            found.append(
                {
                    "id": first + len(found),
                    "image_id": image_id,
                    "category_id": value + 1 - self.class_set.offset,
                    "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
                    "area": int(runs.area(code)),
                    "bbox": [float(number) for number in runs.toBbox(code)],
                    "iscrowd": 1,
                }
            )
        return found

    def save(self, folder: str | Path, *, overlay: bool = True) -> Path:
        """Write `masks/NAME.png` (palette), `confidence/NAME.png` (16 bits, 65535 = 1) and `overlays/NAME.jpg`.

        The mask comes last: where it is, the others are whole.

        Args:
            folder: made if absent.
            overlay: whether to write that picture.

        Returns:
            path of the mask.
        """
        place = Path(folder)
        paths = [place / kind / f"{self.name}{end}" for kind, end in OUTPUTS.items()]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        mask, confidence, picture = paths
        whole = np.empty(self.mask.shape, np.uint16)
        for rows in self._bands():
            whole[rows] = (self.confidence[rows] * 65535).round()
        _save(Image.fromarray(whole), confidence, "PNG")
        if overlay:
            _save(self.overlay(), picture, "JPEG")
        write_mask(mask, self.mask, self.palette)
        return mask


OUTPUTS = {"masks": ".png", "confidence": ".png", "overlays": ".jpg"}


def _save(image: Image.Image, path: Path, kind: str) -> None:
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    write_bytes(path, buffer.getvalue())
