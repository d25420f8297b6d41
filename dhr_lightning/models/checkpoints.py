"""Read checkpoints of our own runs and look at their tensors before use."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dhr_lightning.errors import CheckpointError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the host: tensors and plain values, nothing that could run code.

    Raises:
        CheckpointError: if the file cannot be read, or a weight is not finite.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be read: {reason(error)}. Remove it and run the step that made it again."
        ) from error
    check_finite_weights(checkpoint.get("state_dict", {}), where=f"Checkpoint {path}")
    return checkpoint


def reason(error: Exception) -> str:
    """What is wrong with a file of weights, without the advice of the library to read it unsafely."""
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = named[1] if named else "something"
        return f"it holds {found}; objects other than tensors and plain values could run code and are not loaded"
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def check_finite_weights(state: Mapping[str, Any], *, where: str) -> None:
    """Refuse weights that hold NaN or infinity: every mask made with them would be background.

    Args:
        state: values by name; only floating-point tensors count.
        where: whose they are, for the message.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            wrong = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{where} holds {wrong} of {value.numel()} values that are not finite in {name!r}. Training failed "
                "there or the file is damaged: run that step again (--force STEP), with a lower lr if it recurs."
            )
