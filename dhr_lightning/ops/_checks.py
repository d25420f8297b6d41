"""Argument checks and numeric precision shared by the operations."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` unless `value` > 0."""
    if not value > 0:
        raise ValueError(f"Expected `{name}` > 0, but got {value}.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ValueError` unless `low` <= `value` <= `high`."""
    if not low <= value <= high:
        raise ValueError(f"Expected `{name}` in [{low}, {high}], but got {value}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(choices)}, but got {value!r}.")


def check_dims(name: str, tensor: Tensor, letters: str) -> None:
    """Raise `ValueError` unless `tensor` has one axis per letter in `letters`, such as `"B K h w"`."""
    if tensor.ndim != len(letters.split()):
        raise ValueError(f"Expected `{name}` of shape ({', '.join(letters.split())}), but got {tuple(tensor.shape)}.")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], letters: str) -> None:
    """Raise `ValueError` unless `tensor` has exactly `shape`; `letters` explains the axes."""
    if tuple(tensor.shape) != tuple(shape):
        axes = ", ".join(letters.split())
        raise ValueError(f"Expected `{name}` of shape ({axes}) = {tuple(shape)}, but got {tuple(tensor.shape)}.")


def check_device(name: str, tensor: Tensor, other: str, reference: Tensor) -> None:
    """Raise `ValueError` unless `tensor` lies where `reference`, the argument named `other`, does."""
    if tensor.device != reference.device:
        raise ValueError(f"Expected `{name}` on the device of `{other}`, {reference.device}, but got {tensor.device}.")


def check_finite(name: str, tensor: Tensor, *, seen: Tensor | None = None) -> None:
    """Raise `ValueError` if a value is NaN or infinite.

    `seen` is something small that every value went into, such as a sum: the values themselves are then read only if
    it is not finite.
    """
    if bool((tensor if seen is None else seen).isfinite().all()):
        return
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise ValueError(f"Expected `{name}` to be finite, but {bad} of {tensor.numel()} values are not.")


def check_unit(name: str, tensor: Tensor, *, hint: str, tolerance: float = 0.0) -> None:
    """Raise `ValueError` unless all values lie in [0, 1]; NaN does not. `hint` says what to do."""
    if tensor.numel() == 0:
        return
    low, high = torch.stack(tensor.detach().aminmax()).tolist()
    if not (low >= -tolerance and high <= 1.0 + tolerance):
        raise ValueError(f"Expected `{name}` in [0, 1], but got values from {low} to {high}. {hint}")


def full_precision(tensor: Tensor) -> torch.autocast:
    """Context in which autocast does not lower the precision on the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)


def as_float(tensor: Tensor) -> Tensor:
    """Return float64 unchanged and everything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
