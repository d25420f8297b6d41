"""Integer counts of pixels by true and predicted class value, from which all scores are computed."""

import torch
from torch import Tensor


def joint_counts(prediction: Tensor, target: Tensor, *, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of every image by true and predicted class value.

    Args:
        prediction: `(B, ...)` integer class values; `ignore_index` means "no answer".
        target: same shape, integer class values; `ignore_index` means "no truth".
        num_classes: C, number of class values, background included.
        ignore_index: outside 0..C-1.

    Returns:
        `(B, C + 1, C + 1)` int64, rows = truth, columns = prediction. The last row counts pixels without a truth, the
        last column pixels without an answer.

    Raises:
        ValueError: if the shapes differ, a type is not integer, or a value is neither a class nor `ignore_index`.
    """
    check_pair(prediction, target)
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"Expected `ignore_index` outside 0..{num_classes - 1}, but got {ignore_index}.")
    truth = _to_slot(target.flatten(1).long(), num_classes, ignore_index, "target")  # (B, N)
    answer = _to_slot(prediction.flatten(1).long(), num_classes, ignore_index, "prediction")
    slots = num_classes + 1
    image = torch.arange(len(truth), device=truth.device).unsqueeze(1)
    flat = torch.bincount(((image * slots + truth) * slots + answer).flatten(), minlength=len(truth) * slots**2)
    return flat.view(len(truth), slots, slots)


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
    joint = joint_counts(prediction[None], target[None], num_classes=num_classes, ignore_index=ignore_index)
    return joint[0, :num_classes]


def check_pair(prediction: Tensor, target: Tensor) -> None:
    """Raise `ValueError` unless both are integer masks of one shape."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"Expected masks of one size, but got {tuple(prediction.shape)} and {tuple(target.shape)}. "
            "Resize the prediction to the size of the truth (nearest)."
        )
    for mask in (prediction, target):
        if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            raise ValueError(f"Expected integer class values, but got {mask.dtype}.")


def _to_slot(value: Tensor, num_classes: int, ignore_index: int, name: str) -> Tensor:
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
