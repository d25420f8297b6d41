"""From integer counts to scores."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of one split, all in [0, 1]; NaN marks a class that is neither in the truth nor predicted.

    Attributes:
        iou: `(C,)` float64, intersection over union.
        fpr: `(C,)` float64, wrongly predicted pixels over union.
        fnr: `(C,)` float64, missed pixels over union.
        miou: mean of `iou` over the classes that are not NaN, background included; `mfpr`, `mfnr` likewise.
        pixel_accuracy: share of true pixels that are right; NaN without any pixel.
        boundary_iou: `(C,)` float64, Boundary IoU; NaN everywhere if it was not counted.
        mboundary_iou: its mean over the classes that are not NaN.
    """

    iou: Tensor
    fpr: Tensor
    fnr: Tensor
    miou: float
    mfpr: float
    mfnr: float
    pixel_accuracy: float
    boundary_iou: Tensor
    mboundary_iou: float


def scores(matrix: Tensor, boundary: Tensor | None = None) -> Scores:
    """Turn counts into scores; IoU + FPR + FNR = 1 for every class that is not NaN.

    Args:
        matrix: `(C, C + 1)` counts from `confusion_matrix`, or `(C, C)` when every pixel has an answer.
        boundary: `(3, C)` counts from `boundary_counts`, if they were counted.

    Raises:
        ValueError: if a shape is another one.

    Source: FPR and FNR over the union, and their means, as reported by DHR (arXiv:2404.00380).
    """
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1):
        raise ValueError(f"Expected `matrix` (C, C + 1) or (C, C), but got {tuple(matrix.shape)}.")
    num_classes = len(matrix)
    if boundary is not None and tuple(boundary.shape) != (3, num_classes):
        raise ValueError(f"Expected `boundary` (3, C) = (3, {num_classes}), but got {tuple(boundary.shape)}.")
    counts = matrix.detach().cpu().double()
    hit = counts.diagonal()  # (C,)
    true = counts.sum(dim=1)  # (C,)
    predicted = counts[:, :num_classes].sum(dim=0)  # (C,)
    union = true + predicted - hit  # (C,); 0 / 0 is NaN
    iou, fpr, fnr = hit / union, (predicted - hit) / union, (true - hit) / union
    in_band = counts.new_zeros(3, num_classes) if boundary is None else boundary.detach().cpu().double()
    both, true_band, predicted_band = in_band  # each (C,)
    boundary_iou = both / (true_band + predicted_band - both)
    return Scores(
        iou=iou,
        fpr=fpr,
        fnr=fnr,
        miou=float(iou.nanmean()),
        mfpr=float(fpr.nanmean()),
        mfnr=float(fnr.nanmean()),
        pixel_accuracy=float(hit.sum() / true.sum()),
        boundary_iou=boundary_iou,
        mboundary_iou=float(boundary_iou.nanmean()),
    )
