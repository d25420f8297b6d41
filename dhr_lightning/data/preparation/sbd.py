"""The augmented training set of PASCAL VOC 2012, from the Semantic Boundaries Dataset (SBD)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dhr_lightning.artifacts.files import write_bytes, write_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.voc import read_ids
from dhr_lightning.errors import DataError, DependencyError
from dhr_lightning.progress import log, track

TRAIN_AUG = 10_582  # images of the list that the field trains on
AUG_FOLDER = "SegmentationClassAug"
_LISTS = "ImageSets/Segmentation"


def find_sbd(root: Path) -> Path | None:
    """The folder of SBD with `cls`, `train.txt` and `val.txt`, in one of the usual places around a VOC root."""
    above = root.parent.parent
    places = (root / "sbd", above / "sbd", above / "SBD", above / "benchmark_RELEASE" / "dataset")
    return next((p for p in places if (p / "cls").is_dir() and (p / "train.txt").is_file()), None)


def train_aug_ids(root: Path, sbd: Path) -> list[str]:
    """Ids of the augmented training set: SBD train and val and VOC train, without VOC val; sorted.

    Raises:
        DataError: if a list is missing or empty.

    Source: Hariharan et al. 2011 (ICCV) for SBD; the union is the custom of the field since DeepLab (arXiv:1412.7062).
    """
    lists = [sbd / "train.txt", sbd / "val.txt", root / _LISTS / "train.txt"]
    union = {image_id for path in lists for image_id in read_ids(path)}
    return sorted(union - set(read_ids(root / _LISTS / "val.txt")))


def build_train_aug(root: Path, sbd: Path, classes: ClassSet) -> int:
    """Write `train_aug.txt` and the masks of its images that VOC has none of; files that exist are kept.

    Photos of VOC train keep VOC's own, finer masks in `SegmentationClass`. SBD has no border of 255 pixels.

    Args:
        root: VOC folder with `JPEGImages`.
        sbd: folder with `cls/*.mat`, `train.txt`, `val.txt`.
        classes: VOC's classes.

    Returns:
        How many masks were written.

    Raises:
        DataError: if a `.mat` file is missing or of another kind.
        DependencyError: if scipy is needed and not installed.
    """
    ids = train_aug_ids(root, sbd)
    if len(ids) != TRAIN_AUG:
        log.warning("WARNING: train_aug has %d images here, %d in the published protocol.", len(ids), TRAIN_AUG)
    folder = root / AUG_FOLDER
    folder.mkdir(exist_ok=True)
    official = _stems(root / "SegmentationClass")
    todo = [image_id for image_id in ids if image_id not in official | _stems(folder)]
    _convert_all(todo, sbd, folder, classes)
    _write_list(root / _LISTS / "train_aug.txt", ids)
    return len(todo)


def read_sbd_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Class values `(H, W)` uint8 0-20 of an SBD `cls/*.mat` file.

    Raises:
        DataError: if the file is missing or of another kind.
        DependencyError: if scipy is not installed.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise DependencyError(
            "SBD's .mat files need scipy, which is not installed. Run `pip install 'dhr-lightning[sbd]'`."
        ) from error
    if not path.is_file():
        raise DataError(f"SBD mask {path} is missing. Unpack benchmark.tgz again.")
    try:
        mask = np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
    except (OSError, KeyError, ValueError, IndexError, TypeError, MatReadError, NotImplementedError) as error:
        raise DataError(f"SBD mask {path} cannot be read ({error}). Unpack benchmark.tgz again.") from error
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 20:
        raise DataError(
            f"SBD mask {path} holds {mask.dtype} {mask.shape} up to {mask.max(initial=0)}; expected uint8 (H, W) 0-20. "
            "Take it from cls/, not from inst/."
        )
    return mask


def _convert_all(ids: Sequence[str], sbd: Path, folder: Path, classes: ClassSet) -> None:
    palette = classes.palette
    for image_id in track(ids, "SBD masks"):
        write_mask(folder / f"{image_id}.png", read_sbd_mask(sbd / "cls" / f"{image_id}.mat"), palette)


def _write_list(path: Path, ids: Sequence[str]) -> None:
    """A list of the same images in another order stays: the order of other people's lists decides their batches."""
    if path.is_file():
        theirs = read_ids(path)
        if set(theirs) != set(ids):
            log.warning("WARNING: %s lists %d other images than SBD's union of %d; kept.", path, len(theirs), len(ids))
        return
    write_bytes(path, "".join(f"{image_id}\n" for image_id in ids).encode(), durable=True)


def _stems(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.png")} if folder.is_dir() else set()
