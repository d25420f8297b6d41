"""Scores of masks against the truth, and the statistics that show which tags a mask has lost."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def confusion_matrix(prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by true and predicted class value.

    Args:
        prediction: any shape, integer class values; `ignore_index` means "no answer".
        target: same shape, integer class values; pixels of value `ignore_index` do not count.
        num_classes: C, number of class values, background included.
        ignore_index: outside 0..C-1.

    Returns:
        `(C, C + 1)` int64, rows = truth, columns = prediction. The last column counts "no answer": a miss of the
        true class, a false alarm of none.

    Raises:
        ValueError: if the shapes differ, a type is not integer, or a value is neither a class nor `ignore_index`.
    """
    _check_pair(prediction, target)
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"Expected `ignore_index` outside 0..{num_classes - 1}, but got {ignore_index}.")
    counted = target != ignore_index
    truth, answer = target[counted].long(), prediction[counted].long()  # (M,)
    truth = _to_column(truth, num_classes, ignore_index, "target")
    answer = _to_column(answer, num_classes, ignore_index, "prediction")
    flat = torch.bincount(truth * (num_classes + 1) + answer, minlength=num_classes * (num_classes + 1))
    return flat.view(num_classes, num_classes + 1)


class ConfusionMatrix(Metric):
    """Confusion matrix over a whole split, summed over batches and ranks; `scores` turns it into numbers."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    matrix: Tensor

    def __init__(self, num_classes: int, *, ignore_index: int = 255, **settings: Any) -> None:
        """Start from zero.

        Args:
            num_classes: C, background included.
            ignore_index: outside 0..C-1.
            settings: passed to `torchmetrics.Metric`.
        """
        super().__init__(**settings)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        zeros = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch; arguments and errors as in `confusion_matrix`."""
        self.matrix = self.matrix + confusion_matrix(
            prediction, target, num_classes=self.num_classes, ignore_index=self.ignore_index
        )

    def compute(self) -> Tensor:
        """Return the `(C, C + 1)` int64 counts so far."""
        return self.matrix


@dataclass(frozen=True)
class Scores:
    """Scores of one split, all in [0, 1]; NaN marks a class that is neither in the truth nor predicted.

    Attributes:
        iou: `(C,)` float64, intersection over union.
        fpr: `(C,)` float64, wrongly predicted pixels over union.
        fnr: `(C,)` float64, missed pixels over union.
        miou: mean of `iou` over the classes that are not NaN, background included; `mfpr`, `mfnr` likewise.
        pixel_accuracy: share of true pixels that are right; NaN without any pixel.
    """

    iou: Tensor
    fpr: Tensor
    fnr: Tensor
    miou: float
    mfpr: float
    mfnr: float
    pixel_accuracy: float


def scores(matrix: Tensor) -> Scores:
    """Turn a confusion matrix into scores; IoU + FPR + FNR = 1 for every class that is not NaN.

    Args:
        matrix: `(C, C + 1)` counts from `confusion_matrix`, or `(C, C)` when every pixel has an answer.

    Raises:
        ValueError: if the shape is another one.

    Source: FPR and FNR over the union, and their means, as reported by DHR (arXiv:2404.00380).
    """
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1):
        raise ValueError(f"Expected `matrix` (C, C + 1) or (C, C), but got {tuple(matrix.shape)}.")
    counts = matrix.detach().cpu().double()
    num_classes = len(counts)
    hit = counts.diagonal()  # (C,)
    true = counts.sum(dim=1)  # (C,)
    predicted = counts[:, :num_classes].sum(dim=0)  # (C,)
    union = true + predicted - hit  # (C,); 0 / 0 is NaN
    iou, fpr, fnr = hit / union, (predicted - hit) / union, (true - hit) / union
    return Scores(
        iou=iou,
        fpr=fpr,
        fnr=fnr,
        miou=float(iou.nanmean()),
        mfpr=float(fpr.nanmean()),
        mfnr=float(fnr.nanmean()),
        pixel_accuracy=float(hit.sum() / true.sum()),
    )


@dataclass(frozen=True)
class LostTags:
    """How many (image, tag) pairs a mask has lost; a share is NaN when it has no pairs.

    Attributes:
        pairs: `(C,)` int64, images that carry the tag of each class value; background 0.
        empty: `(C,)` int64, of `pairs`, those whose mask has no pixel of the class. Needs no truth.
        judged: `(C,)` int64, of `pairs`, those whose truth has at least one pixel of the class.
        vanished: `(C,)` int64, of `judged`, those that recover less than the threshold of their true pixels.
        judged_beside: as `judged`, where the image also carries a class it is easily confused with.
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
            neighbours: pairs of class values that are easily confused when they appear together, such as
                (bottle, table); pairs of tags in one image count as "beside".

        Raises:
            ValueError: if a neighbour is not a foreground class value.
        """
        self.num_classes = num_classes
        self.offset = offset
        self.ignore_index = ignore_index
        self.threshold = threshold
        self._neighbours = torch.zeros(num_classes, num_classes, dtype=torch.bool)
        for first, second in neighbours:
            if not (offset <= first < num_classes and offset <= second < num_classes):
                raise ValueError(f"Expected `neighbours` in {offset}..{num_classes - 1}, but got {(first, second)}.")
            self._neighbours[first, second] = self._neighbours[second, first] = True
        self._counts = torch.zeros(6, num_classes, dtype=torch.int64)

    def update(self, mask: Tensor, tags: Tensor, truth: Tensor | None = None) -> None:
        """Add a batch of masks.

        Args:
            mask: `(B, H, W)` integer class values, `ignore_index` allowed.
            tags: `(B, T)` multi-hot over foreground, T = C - offset.
            truth: `(B, H, W)` true class values; None counts only what needs no truth.

        Raises:
            ValueError: if shapes disagree or a value is neither a class nor `ignore_index`.
        """
        expected = (len(mask), self.num_classes - self.offset)
        if mask.ndim != 3 or tuple(tags.shape) != expected:
            raise ValueError(
                f"Expected `mask` (B, H, W) and `tags` {expected}, but got {tuple(mask.shape)}, {tuple(tags.shape)}."
            )
        tagged = torch.zeros(len(mask), self.num_classes, dtype=torch.bool)
        tagged[:, self.offset :] = tags.cpu() > 0  # (B, C)
        empty = tagged & (self._areas(mask, "mask") == 0)
        judged, vanished = torch.zeros_like(tagged), torch.zeros_like(tagged)
        if truth is not None:
            _check_pair(mask, truth)
            area = self._areas(truth, "truth")  # (B, C)
            hit = self._areas(truth.long().where(mask == truth, self.ignore_index), "truth")  # (B, C)
            judged = tagged & (area > 0)
            vanished = judged & (hit < self.threshold * area)
        beside = tagged.float() @ self._neighbours.float() > 0  # (B, C)
        rows = [tagged, empty, judged, vanished, judged & beside, vanished & beside]
        self._counts += torch.stack(rows).sum(dim=1)

    def compute(self) -> LostTags:
        """Return the counts so far."""
        return LostTags(*self._counts.clone().unbind())

    def _areas(self, mask: Tensor, name: str) -> Tensor:
        """Pixels of each class value in each image: `(B, H, W)` -> `(B, C)` int64 on the CPU."""
        value = _to_column(mask.long().flatten(1), self.num_classes, self.ignore_index, name)  # (B, H*W)
        row = torch.arange(len(value), device=value.device).unsqueeze(1) * (self.num_classes + 1)
        flat = torch.bincount((row + value).flatten(), minlength=len(value) * (self.num_classes + 1))
        return flat.view(len(value), -1)[:, : self.num_classes].cpu()


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"Expected masks of one size, but got {tuple(prediction.shape)} and {tuple(target.shape)}. "
            "Resize the prediction to the size of the truth (nearest)."
        )
    for mask in (prediction, target):
        if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            raise ValueError(f"Expected integer class values, but got {mask.dtype}.")


def _to_column(value: Tensor, num_classes: int, ignore_index: int, name: str) -> Tensor:
    """Class values stay, `ignore_index` becomes C; any other value is an error."""
    ignored = value == ignore_index
    wrong = ((value < 0) | (value >= num_classes)) & ~ignored
    if wrong.any():
        found = sorted(set(value[wrong].tolist()))
        raise ValueError(
            f"Expected class values 0..{num_classes - 1} or {ignore_index} in `{name}`, but got {found[:5]} in "
            f"{int(wrong.sum())} pixels. Check the class list, or map the values of the file to class values."
        )
    return value.masked_fill(ignored, num_classes)
