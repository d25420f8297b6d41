"""Segmenters by the name of their decoder."""

from dhr_lightning.models.decoders import MASK2FORMER
from dhr_lightning.models.mask2former import Mask2Former
from dhr_lightning.models.segmenter import Segmenter, SegmenterConfig


def build_segmenter(config: SegmenterConfig, num_classes: int, *, num_tags: int = 0) -> Segmenter | Mask2Former:
    """Build a segmenter.

    Each gives a `SegmenterOutput` for an image, with logits of the classes, and has a `loss` of it on masks, so that
    training, views, prediction and export are the same for all.

    Args:
        config: architecture and initial weights.
        num_classes: segmentation classes C, background included.
        num_tags: tags T for a CAM head; 0 for none.

    Raises:
        ConfigError: if decoder or backbone are unknown, or do not go together.
        DependencyError: if the decoder needs a package that is not installed.
    """
    build = Mask2Former if config.decoder == MASK2FORMER else Segmenter
    return build(config, num_classes, num_tags=num_tags)
