"""Tags that a mask no longer shows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.evaluation.metrics.counts import joint_counts


@dataclass(frozen=True)
class LostTags:
    """How many (image, tag) pairs a mask has lost; a share is NaN when it has no pairs.

    Attributes:
        pairs: `(C,)` int64, images that carry the tag of each class value; background 0.
        empty: `(C,)` int64, of `pairs`, those whose mask has no pixel of the class. Needs no truth.
        judged: `(C,)` int64, of `pairs`, those whose truth has at least one pixel of the class.
        vanished: `(C,)` int64, of `judged`, those that recover less than the threshold of their true pixels.
        judged_beside: as `judged`, where the image also carries a neighbour that tends to swallow the class.
        vanished_beside: as `vanished`, likewise.
    """

    pairs: Tensor
    empty: Tensor
    judged: Tensor
    vanished: Tensor
    judged_beside: Tensor
    vanished_beside: Tensor

    @property
    def empty_share(self) -> float:
        """Share of all pairs without a pixel in the mask."""
        return float(self.empty.sum() / self.pairs.sum())

    @property
    def vanished_share(self) -> float:
        """Share of the judged pairs that vanished."""
        return float(self.vanished.sum() / self.judged.sum())

    @property
    def vanished_beside_share(self) -> float:
        """Share of the judged pairs next to a neighbour class that vanished."""
        return float(self.vanished_beside.sum() / self.judged_beside.sum())


class MaskStatistics:
    """Count, image by image, the tags that a mask no longer shows."""

    def __init__(
        self,
        num_classes: int,
        *,
        offset: int,
        ignore_index: int = 255,
        threshold: float = 0.1,
        neighbours: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Start from zero.

        Args:
            num_classes: C, background included.
            offset: class value of the first tag (1 with background, else 0).
            ignore_index: value of unlabelled pixels, outside 0..C-1.
            threshold: a class has vanished when it recovers less than this share of its true pixels.
            neighbours: pairs (minor, large) of class values, such as (bottle, table): the minor class is the one that
                tends to be lost where both are tagged, and the one that is counted as "beside".

        Raises:
            ValueError: if a neighbour is not a foreground class value.
        """
        self.num_classes = num_classes
        self.offset = offset
        self.ignore_index = ignore_index
        self.threshold = threshold
        self._large = torch.zeros(num_classes, num_classes, device="cpu")  # [large, minor], 0 or 1
        for minor, large in neighbours:
            if not (offset <= minor < num_classes and offset <= large < num_classes):
                raise ValueError(f"Expected `neighbours` in {offset}..{num_classes - 1}, but got {(minor, large)}.")
            self._large[large, minor] = True
        self._counts = torch.zeros(6, num_classes, dtype=torch.int64, device="cpu")

    def update(self, mask: Tensor, tags: Tensor, truth: Tensor | None = None) -> None:
        """Add a batch of masks.

        Args:
            mask: `(B, H, W)` integer class values, `ignore_index` allowed.
            tags: `(B, T)` multi-hot over foreground, T = C - offset.
            truth: `(B, H, W)` true class values; None counts only what needs no truth.

        Raises:
            ValueError: if shapes disagree or a value is neither a class nor `ignore_index`.
        """
        if mask.ndim != 3:
            raise ValueError(f"Expected `mask` (B, H, W), but got {tuple(mask.shape)}.")
        target = torch.full_like(mask, self.ignore_index, dtype=torch.int64) if truth is None else truth
        self.add(joint_counts(mask, target, num_classes=self.num_classes, ignore_index=self.ignore_index), tags)

    def add(self, joint: Tensor, tags: Tensor) -> None:
        """Add a batch whose pixels have been counted.

        Args:
            joint: `(B, C + 1, C + 1)` from `joint_counts`; an image without truth has all pixels in its last row.
            tags: `(B, T)` multi-hot over foreground, T = C - offset.

        Raises:
            ValueError: if a shape is another one.
        """
        classes = self.num_classes
        expected = (len(joint), classes - self.offset)
        if tuple(joint.shape[1:]) != (classes + 1, classes + 1) or tuple(tags.shape) != expected:
            raise ValueError(
                f"Expected `joint` (B, {classes + 1}, {classes + 1}) and `tags` {expected}, "
                f"but got {tuple(joint.shape)}, {tuple(tags.shape)}."
            )
        joint = joint.cpu()
        tagged = functional.pad(tags.cpu() > 0, (self.offset, 0))  # (B, C)
        area = joint.sum(2)[:, :classes]  # (B, C)
        hit = joint.diagonal(dim1=1, dim2=2)[:, :classes]
        empty = tagged & (joint.sum(1)[:, :classes] == 0)
        judged = tagged & (area > 0)
        vanished = judged & (hit.double() / area < self.threshold)  # a quotient, so that exactly the share is kept
        beside = tagged.float() @ self._large > 0  # (B, C)
        rows = [tagged, empty, judged, vanished, judged & beside, vanished & beside]
        self._counts += torch.stack(rows).sum(dim=1)

    def compute(self) -> LostTags:
        """Return the counts so far."""
        return LostTags(*self._counts.clone().unbind())
