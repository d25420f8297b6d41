"""The canvas of a whole image: its own size rounded up to what a network can divide, and nothing of its batch."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dhr_lightning.artifacts.arrays import features_shape
from dhr_lightning.data.catalog import Record
from dhr_lightning.data.dataset import PathOf
from dhr_lightning.data.files import image_size
from dhr_lightning.data.sample import canvas_size, feature_grid

CANVAS_DIVISOR = 32  # the coarsest stride of the networks
USUAL_PIXELS = 640 * 640  # no photo of VOC or COCO has more
_THREADS = 8  # headers are read while others wait for the disk


class Canvas(NamedTuple):
    """What images must have in common to share a batch.

    Args:
        size: `(height, width)` of the canvas in pixels.
        grid: cells of the features on that canvas, `(rows, columns)`; None without features.
    """

    size: tuple[int, int]
    grid: tuple[int, int] | None = None


def images_at_once(canvases: Iterable[Canvas], batch_size: int) -> dict[Canvas, int]:
    """Images of each canvas that take no more memory together than `batch_size` images of usual photos.

    Args:
        canvases: of the images.
        batch_size: images of at most `USUAL_PIXELS` in a batch.
    """
    budget = batch_size * USUAL_PIXELS
    return {one: max(1, min(batch_size, budget // (one.size[0] * one.size[1]))) for one in set(canvases)}


def canvases_of(
    records: Sequence[Record], *, features: PathOf | None = None, divisor: int = CANVAS_DIVISOR
) -> list[Canvas]:
    """Canvas of every image, from the headers of its files.

    Args:
        records: images.
        features: where to find their features, by image id.
        divisor: sides of a canvas are multiples of this many pixels; 1 for tasks that pad nothing.

    Raises:
        DataError: if an image cannot be read.
        ArtifactError: if features cannot be read.
    """

    def of(record: Record) -> Canvas:
        size = image_size(record.image)
        canvas = canvas_size(size, divisor=divisor)
        if features is None:
            return Canvas(canvas)
        return Canvas(canvas, feature_grid(features_shape(features(record.id))[1:], size, canvas))

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(of, records))
