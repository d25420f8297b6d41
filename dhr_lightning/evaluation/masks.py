"""Reading any kind of artifact as a mask of class values."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import read_cam, read_mask
from dhr_lightning.artifacts.store import ArtifactStore
from dhr_lightning.data.files import check_mask
from dhr_lightning.evaluation.kinds import CAM_THRESHOLD, MaskKind
from dhr_lightning.evaluation.truth import GroundTruth, UInt8

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_lightning.ops.classes import ImageClasses


def read_labels(
    store: ArtifactStore, truth: GroundTruth, kind: MaskKind, image_id: str, *, size: tuple[int, int] | None = None
) -> UInt8:
    """Mask `(H, W)` of class values of any kind; activation maps become one by `cam_labels`.

    Args:
        store: the artifacts.
        truth: tells the class list and, if `size` is not given, the image size.
        kind: which mask.
        image_id: which image.
        size: expected `(H, W)`.

    Raises:
        MaskError: if a mask on disk has another size or an unknown value.
    """
    path = store.path(kind.address, kind.split, image_id)
    if not kind.is_cam:
        mask = read_mask(path)
        height, width = size or mask.shape
        return check_mask(mask, path=path, size=(width, height), classes=truth.classes)
    keys, cam = read_cam(path)
    height, width = size or truth.image(kind.split, image_id).shape[:2]
    background = truth.classes.has_background
    return cam_labels(keys, cam, size=(height, width), has_background=background, threshold=kind.threshold)


def difference(store: ArtifactStore, first: MaskKind, second: MaskKind) -> float:
    """Share of pixels whose class differs between two kinds of masks, over the images of both, in [0, 1]."""
    changed = pixels = 0
    for image_id in sorted(set(first.ids) & set(second.ids)):
        one, other = (read_mask(store.path(kind.address, kind.split, image_id)) for kind in (first, second))
        changed, pixels = changed + int((one != other).sum()), pixels + one.size
    return changed / max(pixels, 1)


def cam_labels(
    keys: npt.NDArray[np.int16],
    cam: npt.NDArray[np.floating],
    *,
    size: tuple[int, int],
    has_background: bool,
    threshold: float = CAM_THRESHOLD,
) -> UInt8:
    """Class of the largest activation at full size; background where none exceeds the threshold.

    Args:
        keys: `(K,)` class values; negative ones are padding, and 0 is skipped where it means background.
        cam: `(K, h, w)` in [0, 1].
        size: `(H, W)` of the result.
        has_background: without background the threshold is not used.
        threshold: constant score of the background.

    Returns:
        `(H, W)` uint8 class values; 255 everywhere if there is neither background nor a key.
    """
    import torch

    from dhr_lightning.ops import cam as ops

    if not len(keys):
        return np.full(size, 0 if has_background else 255, np.uint8)
    maps, classes = _resized(keys, cam, size=size, has_background=has_background)
    return ops.cam_labels(maps, classes, threshold=threshold)[0].to(torch.uint8).numpy()


def strongest(
    keys: npt.NDArray[np.int16], cam: npt.NDArray[np.floating], *, size: tuple[int, int]
) -> tuple[UInt8, npt.NDArray[np.float32]]:
    """Foreground class of the largest activation at every pixel, and that activation.

    Args:
        keys: `(K,)` class values with one above 0 at least; others are skipped.
        cam: `(K, h, w)` in [0, 1].
        size: `(H, W)` of the results.
    """
    import torch

    from dhr_lightning.ops.cam import strongest_class

    labels, score = strongest_class(*_resized(keys, cam, size=size, has_background=True))
    return labels[0].to(torch.uint8).numpy(), score[0].numpy()


def _resized(
    keys: npt.NDArray[np.int16], cam: npt.NDArray[np.floating], *, size: tuple[int, int], has_background: bool
) -> "tuple[Tensor, ImageClasses]":
    """Maps of one image at full size `(1, K, H, W)` float, and its classes."""
    import torch

    from dhr_lightning.ops.classes import ImageClasses
    from dhr_lightning.ops.resize import resize_maps

    classes = ImageClasses(torch.from_numpy(keys.astype(np.int64))[None], int(has_background))
    return resize_maps(torch.from_numpy(cam.astype(np.float32))[None], size), classes
