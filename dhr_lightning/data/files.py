"""Read photos and ground-truth masks, with errors that name the file."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dhr_lightning.data.catalog import ClassSet, Record
from dhr_lightning.data.image_headers import (
    HEIF_REMEDY,
    ImageHeader,
    bits_per_channel,
    is_heif,
    read_header,
    reads_heif,
    register_heif,
)
from dhr_lightning.errors import DataError, MaskError

_ORIENTATION = ExifTags.Base.Orientation
_FEWEST_MASKS, _FOREIGN = 20, 0.2  # images, and share of tags in their mask: another class list has less by chance
_BITS = 8  # per channel
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a photo; what goes wrong while it is read names the file."""
    try:
        with open_image(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"Image {path} is missing. Restore it or remove its id from the list.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"Image {path} cannot be read ({error}). Replace the file or remove its id from the list."
        ) from error


def open_image(path: Path) -> Image.Image:
    """Open a photo without decoding it, a HEIC one too where the optional package can read it.

    Raises:
        DataError: if it is HEIC and the package is missing.
        OSError: if the file is missing or no image.
    """
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        if not is_heif(path):
            raise
        if not reads_heif():
            raise DataError(f"Image {path} cannot be read. {HEIF_REMEDY}.") from error
    register_heif()
    return Image.open(path)


def read_image(path: Path) -> Image.Image:
    """Read a photo as RGB, turned upright as its EXIF tag says; of several pages or frames the first.

    A fourth channel, transparency or another band, is dropped.

    Raises:
        DataError: if the file is missing, truncated, no image, larger than Pillow reads safely, or has more than 8 bits
            per channel by its header: Pillow would keep the high or the low ones, so that dark or white images result.
    """
    with _opened(path) as image:
        with path.open("rb") as file:
            bits = bits_per_channel(image, file.read(512))
        if bits > _BITS:
            raise DataError(
                f"Image {path} has {bits} bits per channel, and "
                "reading it with 8 would make it dark or white. Scale its real range of values to 0-255 and save it "
                "with 8 bits."
            )
        return ImageOps.exif_transpose(image).convert("RGB")


def image_header(path: Path) -> ImageHeader:
    """Depth, pages and bands of a photo; only the header is read.

    Raises:
        DataError: if the file is missing or no image.
    """
    with _opened(path) as image:
        return read_header(image, path)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of a photo in pixels, turned upright as its EXIF tag says; only the header is read.

    Raises:
        DataError: if the file is missing or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
    return (width, height) if turned else (height, width)


def read_truth(path: Path) -> npt.NDArray[np.uint8]:
    """Read a single-channel mask `(H, W)` uint8, turned upright like a photo if it has an EXIF tag of its own.

    Raises:
        MaskError: if the file is unreadable or has colour channels (a palette that was expanded to RGB).
    """
    try:
        with Image.open(path) as image:
            mask = np.array(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError) as error:
        raise MaskError(f"Mask {path} cannot be read ({error}). Replace the file.") from error
    if mask.ndim != 2:
        raise MaskError(
            f"Mask {path} has {mask.shape[-1]} channels: its palette was expanded to colours. "
            "Save it as a palette or grey PNG."
        )
    if mask.dtype != np.uint8:
        raise MaskError(f"Mask {path} holds {mask.dtype} values; expected 8-bit class values. Save it as an 8-bit PNG.")
    return mask


def read_gt_mask(record: Record) -> npt.NDArray[np.uint8] | None:
    """The true mask `(H, W)` uint8 of an image in class values, or `None` where it has none.

    Raises:
        MaskError: as `read_truth`.
    """
    if record.gt_mask is None:
        return None
    mask = read_truth(record.gt_mask)
    return mask if record.gt_values is None else np.frombuffer(record.gt_values, np.uint8)[mask]


def check_mask(
    mask: npt.NDArray[np.uint8], *, path: Path, size: tuple[int, int], classes: ClassSet
) -> npt.NDArray[np.uint8]:
    """Check a mask against the image's `(width, height)` and the class list, and return it.

    Raises:
        MaskError: names the file, the sizes, or the unknown values with their pixel counts.
    """
    if mask.shape != (size[1], size[0]):
        turned = " (its EXIF tag turns the photo, and the mask was drawn on the unturned one)"
        raise MaskError(
            f"Mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels, but its image is {size[0]}x{size[1]}"
            f"{turned if mask.shape == size else ''}. Make the mask again at the size of the image."
        )
    values, counts = np.unique(mask, return_counts=True)
    unknown = (values >= classes.num_classes) & (values != classes.ignore_index)
    if unknown.any():
        found = ", ".join(f"{v} ({c} px)" for v, c in zip(values[unknown], counts[unknown], strict=True))
        raise MaskError(
            f"Mask {path} holds values outside the {classes.num_classes} classes and {classes.ignore_index}: {found}. "
            "The file may hold raw dataset ids or palette colours; convert it to class values."
        )
    return mask


def check_record(record: Record, classes: ClassSet) -> frozenset[int] | None:
    """Decode the image and the mask of one record and check them against each other.

    Returns:
        Class values that the mask shows; `None` without a mask.
    """
    image = read_image(record.image)
    mask = read_gt_mask(record)
    if mask is None or record.gt_mask is None:
        return None
    check_mask(mask, path=record.gt_mask, size=image.size, classes=classes)
    return frozenset(np.unique(mask).tolist()) - {classes.ignore_index}


@dataclass
class TruthAgreement:
    """Whether the true masks of a split can be those of its tags.

    Args:
        masks: true masks.
        tagged: images with a mask and tags.
        tags: tags of these images.
        shown: of them, those with a pixel in the mask.
        objects: whether any mask shows a class besides the background.
    """

    masks: int = 0
    tagged: int = 0
    tags: int = 0
    shown: int = 0
    objects: bool = False

    def add(self, tags: Collection[int], values: Collection[int], *, offset: int) -> None:
        """Count an image with a true mask.

        Args:
            tags: class values of its tags.
            values: class values that the mask shows.
            offset: the first class value that is no background.
        """
        self.masks += 1
        self.tagged += bool(tags)
        self.tags += len(tags)
        self.shown += len(set(tags) & set(values))
        self.objects = self.objects or any(value >= offset for value in values)

    def check(self, *, split: str, tags: int, ignore_index: int) -> None:
        """Refuse truth that cannot be that of the tags.

        Args:
            split: the split.
            tags: foreground classes.
            ignore_index: mask value that is not scored.

        Raises:
            MaskError: if no class occurs although tags name some, or almost no tag has a pixel in its mask.
        """
        if self.tagged and not self.objects:
            raise truth_without_classes(self.masks, self.tagged, split=split, tags=tags, ignore_index=ignore_index)
        if self.tagged >= _FEWEST_MASKS and self.shown < _FOREIGN * self.tags:
            raise MaskError(
                f"Only {self.shown} of {self.tags} tags of {split} have a pixel of their class in the true mask: the "
                "masks follow another class list, and any figure would be wrong. `python -m dhr_lightning doctor "
                "--data ...` shows their values; for a folder of your own, map them with data.options.mask_values."
            )


def truth_without_classes(masks: int, tagged: int, *, split: str, tags: int, ignore_index: int) -> MaskError:
    """The error for true masks in which no class occurs although tags name some: every prediction would score 100.

    Args:
        masks: true masks of the split.
        tagged: how many of their images have tags.
        split: the split.
        tags: foreground classes.
        ignore_index: mask value that is not scored.
    """
    return MaskError(
        f"None of the {masks} true masks of {split} shows any of the {tags} classes, though the tags of {tagged} of "
        f"these images name some: any prediction would score 100. {ignore_index} means `not scored`; class values "
        "count from 1 in the order of the class list. Write the masks so, or map their values: for a folder of your "
        "own data.options.mask_values, such as {255: lesion}; `python -m dhr_lightning doctor --data ...` shows them."
    )
