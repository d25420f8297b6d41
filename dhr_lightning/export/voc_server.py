"""Files for the PASCAL VOC evaluation server, which holds the ground truth of the test images."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dhr_lightning.artifacts.files import read_mask, write_mask
from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.datasets.voc import VOC_CLASSES
from dhr_lightning.data.files import read_image
from dhr_lightning.errors import ConfigError, MaskError
from dhr_lightning.export.predictions import Predictions
from dhr_lightning.progress import track
from dhr_lightning.provenance.views import DataView

SPLITS = ("test", "val")
_CLASSES = ClassSet(VOC_CLASSES)
_LARGEST = _CLASSES.num_classes - 1

Sizes = Mapping[str, tuple[int, int]]


def results_folder(split: str) -> str:
    """Folder of the masks as the server wants it; competition 6 is segmentation with any training data."""
    return f"results/VOC2012/Segmentation/comp6_{split}_cls"


def check_voc_server(view: DataView, split: str) -> None:
    """Refuse what the server cannot score.

    Raises:
        ConfigError: for other classes than VOC's, or a split that is not there.
    """
    info, root = view.info, view.root
    if info.classes.names != VOC_CLASSES:
        raise ConfigError(f"The VOC server scores the 21 classes of VOC 2012, but {info.name} has others.")
    if split not in SPLITS:
        raise ConfigError(f"Expected --split {' or '.join(SPLITS)} for the VOC server, but got {split!r}.")
    if split not in info.splits(root):
        raise ConfigError(
            f"{info.name} in {root} has no {split} split. Put the test images of VOC 2012 and their list "
            f"ImageSets/Segmentation/{split}.txt there, then run the recipe again."
        )


def write_voc_server(predictions: Predictions, folder: Path) -> None:
    """Write `results/.../<id>.png` and a tar of them, then read the tar again and check it.

    Args:
        predictions: finished masks.
        folder: an empty folder.

    Raises:
        MaskError: if a mask has another size than its image or holds anything but class values, also in the tar.

    Source: the layout that the VOC development kit and the authors of DHR use; palette and values as in VOC's masks.
    """
    place = results_folder(predictions.split)
    (folder / place).mkdir(parents=True)
    sizes = {}
    for record in track(predictions.records, "exporting"):
        mask, size = read_mask(predictions.path(record)), read_image(record.image).size
        _check(mask.shape[::-1], int(mask.max()), size, where=str(predictions.path(record)))
        sizes[f"{place}/{record.id}.png"] = size
        write_mask(folder / place / f"{record.id}.png", mask, _CLASSES.palette)
    archive = folder / f"{Path(place).name}.tar"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sizes:
            tar.add(folder / name, arcname=name, filter=_without_owner)
    check_archive(archive, sizes)


def check_archive(archive: Path, sizes: Sizes) -> None:
    """Read a finished tar and compare it with what the server expects.

    Args:
        archive: the tar.
        sizes: `(width, height)` of each image by the name of its mask in the tar.

    Raises:
        MaskError: names the first file that is missing, unexpected, no palette PNG, of another size or value.
    """
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
        odd = sorted(members.keys() ^ sizes.keys())
        if odd or len(tar.getmembers()) != len(sizes):
            raise MaskError(f"{archive} holds {len(members)} masks of {len(sizes)} images, first difference {odd[:1]}.")
        for name, size in track(sizes.items(), "checking"):
            data = tar.extractfile(members[name])
            assert data is not None  # only files were added
            with Image.open(io.BytesIO(data.read()), formats=("PNG",)) as image:
                if image.mode != "P" or image.getpalette() != _CLASSES.palette.ravel().tolist():
                    raise MaskError(f"{name} in {archive} is no PNG with the palette of VOC.")
                _check(image.size, int(np.array(image).max()), size, where=f"{name} in {archive}")


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Equal masks give equal bytes, whoever packs them and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _check(found: Sequence[int], largest: int, size: tuple[int, int], *, where: str) -> None:
    if tuple(found) != size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (found, size))
        raise MaskError(f"{where} and its image differ in size: {sizes} pixels. Make the predictions again.")
    if largest > _LARGEST:
        raise MaskError(
            f"{where} holds the value {largest}, but the server takes class values 0 to {_LARGEST} and no ignored "
            "pixels (255). Give every pixel a class."
        )
