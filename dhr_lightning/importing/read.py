"""Read what others made for one image: masks, activation maps of IRNet's form, features."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dhr_lightning.artifacts.files import read_cam
from dhr_lightning.artifacts.kinds import NPY, kind_of
from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.files import check_mask, read_truth
from dhr_lightning.errors import DataError
from dhr_lightning.importing.pickles import read_pickled_dict

_TURNED = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_TOLERANCE = 1e-3
SUFFIXES = {".png": (".png",), ".npz": (".npy", ".npz"), ".npy": (".npy", ".pt")}


def read_foreign(path: Path, kind: str, record: Record, classes: ClassSet) -> list[npt.NDArray[Any]]:
    """Arrays as `ArtifactWriter.write` takes them.

    Args:
        path: file of one image.
        kind: artifact kind that it becomes.
        record: the image.
        classes: class list that its values mean.

    Raises:
        DataError: if the file cannot be read or is refused.
        MaskError: if a mask has another size than its image, unknown values or colours.
    """
    if kind_of(kind).is_mask:
        return [check_mask(read_truth(path), path=path, size=image_size(record.image), classes=classes)]
    if kind_of(kind).codec is NPY:
        return [_read_features(path)]
    keys, cam = read_cam(path) if path.suffix == ".npz" else read_irn_cam(path, classes)
    return [keys, cam]


def read_irn_cam(path: Path, classes: ClassSet) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float16]]:
    """Activation maps of a pickled dictionary: `keys (K,)` from 0, which counts foreground only, to class values.

    Two forms are known: `{"keys", "cam", "high_res"}`, of which the coarse `cam (K, h, w)` is taken where it is there,
    and `{key: map (H, W)}`.

    Returns:
        Class values `(K,)` int16, ascending, and maps `(K, h, w)` float16 in [0, 1].

    Raises:
        DataError: if the form is another, a key is no class, or a value is outside [0, 1].
    """
    content = read_pickled_dict(path)
    if "keys" in content:
        keys, cam = content["keys"], content.get("cam", content.get("high_res"))
    elif all(isinstance(key, int | np.integer) for key in content):
        keys, cam = list(content), [content[key] for key in content]
    else:
        raise DataError(f"{path} has the entries {sorted(map(str, content))[:4]}; expected keys and cam, or class ids.")
    try:
        keys, cam = np.asarray(keys, np.int64).reshape(-1), np.asarray(cam, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} holds no activation maps of one size ({error}). Export it again.") from error
    if not len(keys):
        return np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float16)
    if cam.ndim != 3 or len(cam) != len(keys):
        raise DataError(f"{path} has keys {keys.shape} and maps {cam.shape}; expected (K,) and (K, h, w).")
    if keys.min() < 0 or keys.max() >= classes.num_tags:
        raise DataError(f"{path} has keys {keys.tolist()}, but they count the {classes.num_tags} classes from 0.")
    if not np.isfinite(cam).all() or cam.min() < -_TOLERANCE or cam.max() > 1 + _TOLERANCE:
        raise DataError(f"{path} has values from {cam.min():g} to {cam.max():g}; expected [0, 1]. Normalise the maps.")
    order = np.argsort(keys)
    return (keys[order] + classes.offset).astype(np.int16), np.clip(cam[order], 0, 1).astype(np.float16)


def _read_features(path: Path) -> npt.NDArray[np.float16]:
    try:
        if path.suffix == ".pt":
            import torch  # only these files need it

            features = torch.load(path, weights_only=True, map_location="cpu").float().numpy()
        else:
            features = np.load(path, allow_pickle=False)
    except UnpicklingError as error:
        raise DataError(f"{path} is refused: it holds more than tensors. Its code was not run.") from error
    except (OSError, ValueError, EOFError, RuntimeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as features ({error}). Save one array or tensor (D, h, w).") from error
    if features.ndim == 4 and len(features) == 1:
        features = features[0]
    if features.ndim != 3 or not np.isfinite(features).all():
        raise DataError(f"{path} holds {features.shape} {features.dtype}; expected finite features (D, h, w).")
    return np.asarray(features, np.float16)


def image_size(path: Path) -> tuple[int, int]:
    """`(width, height)` of a photo as it is shown, from its header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except (OSError, SyntaxError) as error:
        raise DataError(f"Image {path} cannot be read ({error}). Replace the file.") from error
    return (height, width) if turned else (width, height)
