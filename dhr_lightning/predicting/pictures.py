"""Anything that shows an image, as pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from dhr_lightning.data.files import read_image
from dhr_lightning.errors import DataError
from dhr_lightning.predicting.engines import Pixels

Picture = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


def to_pixels(image: Picture) -> tuple[Pixels, str]:
    """Pixels `(H, W, 3)` uint8 RGB of anything that shows an image, and its name.

    Raises:
        DataError: if it is no image.
    """
    if isinstance(image, str | Path):
        return np.asarray(read_image(Path(image))), Path(image).stem
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"The image has {image.mode} pixels of more than 8 bits. Scale its range to 0-255.")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright), Path(getattr(image, "filename", "") or "image").stem
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(
            f"Expected an image (H, W, 3) or (H, W) uint8, or a tensor (3, H, W) uint8, but got {array.shape} "
            f"{array.dtype}. Values are 0 to 255."
        )
    return array, "image"
