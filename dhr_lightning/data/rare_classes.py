"""Choose training images so that rare classes have their say."""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from dhr_lightning.data.catalog import Record, subsample_evenly
from dhr_lightning.errors import ConfigError


def repeat_rare(records: Sequence[Record], threshold: float, *, seed: int = 0) -> list[Record]:
    """Repeat each image by the factor of its rarest tag.

    A class in the share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest of its tags.

    Args:
        records: training images.
        threshold: share of the images, in [0, 1], below which a class counts as rare; 0 repeats nothing.
        seed: decides which images get the fraction of their factor as one more repetition.

    Returns:
        The images in their order, the repetitions of one beside each other.

    Raises:
        ConfigError: if `threshold` is out of range.

    Source: repeat factor sampling of LVIS (arXiv:1908.03195), section 4 (there: oversampling by image).
    Differs: fractions are rounded at random once, not in every epoch, so that epochs have one length.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"Expected data.repeat_rare in [0, 1], but got {threshold}.")
    counts = Counter(tag for record in records for tag in set(record.tags))
    factors = {tag: max(1.0, math.sqrt(threshold * len(records) / count)) for tag, count in counts.items()}
    draws = torch.rand(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    repeated: list[Record] = []
    for record, draw in zip(records, draws, strict=True):
        factor = max((factors[tag] for tag in record.tags), default=1.0)
        repeated += [record] * int(factor + draw)
    return repeated


def images_of_each_class(records: Sequence[Record], count: int) -> list[Record]:
    """Training images in which every class is shown by some, however rare it is.

    Args:
        records: training images.
        count: images of each class, evenly over the list; all of a class that has fewer. > 0.

    Returns:
        Their union, each once, in the order of the list.
    """
    by_class: dict[int, list[Record]] = {}
    for record in records:
        for tag in record.tags:
            by_class.setdefault(tag, []).append(record)
    chosen = {record.id for images in by_class.values() for record in subsample_evenly(images, count)}
    return [record for record in records if record.id in chosen]
