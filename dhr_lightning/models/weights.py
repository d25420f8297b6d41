"""The one place where weights are taken from a file or by name."""

import contextlib
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dhr_lightning.errors import CheckpointError, ConfigError, DependencyError
from dhr_lightning.models.checkpoints import check_finite_weights, reason

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model", "teacher")
CLASSIFIER = ("head.", "fc.", "classifier.")  # keys of what a frozen network is used without
_PREFIX = re.compile(r"^(module\.)?(backbone\.)?")  # of parallel training, and of a network with a projector
_SHOWN = 3  # keys that an error names
_PARTS = re.compile(r"^(model\.)?([a-z]+)\.(\d+)\.")  # `stages.0.` is `stages_0.` where timm cuts a network into stages
_WITHOUT_USE = "num_batches_tracked"  # older files lack it, and evaluation does not read it


def create_timm(name: str, *, pretrained: bool | str, kind: str, **options: Any) -> nn.Module:
    """`timm.create_model`, with errors that say what to do; a path as `pretrained` is not loaded here.

    Args:
        name: timm name.
        pretrained: only `True` fetches weights.
        kind: what the name has to be, for messages.
        **options: of `timm.create_model`.

    Raises:
        ConfigError: if timm cannot build it with these options, or knows no such weights.
        DependencyError: if the download fails.
    """
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained is True, **options)
    except OSError as error:
        raise DependencyError(
            f"Weights of {name!r} could not be downloaded ({type(error).__name__}). Download {source_of(name)} "
            "elsewhere and set pretrained: PATH, or set pretrained: false."
        ) from error
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"{name!r} is no {kind} ({error}).") from error
    return model


def source_of(name: str) -> str:
    """Which file holds the weights of a timm name, and where it comes from, for messages."""
    name = name.removeprefix("tu-")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if config is None or not (config.hf_hub_id or config.url):
        return "a file of its weights"
    if not config.hf_hub_id:
        return str(config.url)
    return f"{config.hf_hub_filename or 'model.safetensors'} of https://huggingface.co/{config.hf_hub_id}"


def read_state(path: Path, *, what: str, source: str = "the file") -> State:
    """Read a state dict: `.safetensors`, or what torch wrote (tensors only); a wrapper around it is taken off.

    Args:
        path: the file.
        what: whose weights they are, for messages.
        source: what to put there if it is missing, see `source_of`.

    Returns:
        tensors by key; int8 rows `X.int8` (R, C) with `X.scale` (R,) as `X` float32, exactly `int8 * scale`.

    Raises:
        CheckpointError: if the file is absent, holds no state dict, or a weight is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"Weights of {what} are missing: {path}. Put {source} there or set pretrained: false.")
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in _WRAPPERS:
            state = state.get(wrapper, state) if isinstance(state.get(wrapper, 0), Mapping) else state
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds no tensors by name")
        weights = _dequantized({_PREFIX.sub("", str(key)): value for key, value in state.items()})
    except (OSError, RuntimeError, TypeError, LookupError, AttributeError, EOFError, pickle.UnpicklingError,
            SafetensorError) as error:  # fmt: skip
        raise CheckpointError(f"Weights of {what} cannot be taken from {path}: {reason(error)}.") from error
    check_finite_weights(weights, where=f"The file {path}")
    return weights


def _dequantized(state: Mapping[str, Tensor]) -> State:
    result = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if kind == "int8":
            scale = state.get(f"{stem}.scale")
            if scale is None or value.dtype != torch.int8 or scale.shape != value.shape[:1]:
                scales = "none" if scale is None else tuple(scale.shape)
                raise TypeError(
                    f"expected int8 rows in {key} and a number for each in {stem}.scale, but got "
                    f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} and {scales}"
                )
            result[stem] = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
        elif not (kind == "scale" and f"{stem}.int8" in state):
            result[key] = value
    return result


def load_weights(
    module: nn.Module, path: Path, *, what: str, unused: Sequence[str] | None = None, source: str = "the file"
) -> None:
    """Fill a network from a file; everything that the network has must be in it.

    Args:
        module: the network. A file for a timm network also fits the encoder that wraps it, and a file in the layout of
            the original authors is brought to that of timm, where timm can.
        path: see `read_state`.
        what: for messages.
        unused: beginnings of keys that the file may have and the network lacks, such as a classifier; any by default.
        source: see `read_state`.

    Raises:
        CheckpointError: if the file is absent, holds no state dict, or its tensors do not fit; names the first keys.
    """
    state = read_state(path, what=what, source=source)
    own = module.state_dict()
    layouts = [state, *_other_layouts(module, state)]
    # one that fits, otherwise the nearest one, whose differences say most
    best = max(layouts, key=lambda layout: (not _differences(own, layout, unused), len(own.keys() & layout.keys())))
    differences = _differences(own, best, unused)
    if differences:
        raise CheckpointError(
            f"Weights of {what} cannot be taken from {path}, which does not fit: {differences}. "
            "Name the backbone that these weights belong to."
        )
    # The base class, because encoders override this without returning the missing keys.
    nn.Module.load_state_dict(module, {key: value for key, value in best.items() if key in own}, strict=False)


def _allowed(key: str, unused: Sequence[str] | None) -> bool:
    return unused is None or key.startswith(tuple(unused))


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor], unused: Sequence[str] | None) -> str:
    """What does not fit, in words; empty if all does."""
    missing = [key for key in own if key not in state and not key.endswith(_WITHOUT_USE)]
    unknown = [key for key in state if not (key in own or _allowed(key, unused) or key.endswith(_WITHOUT_USE))]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    found = (
        (missing, f"{len(own)} tensors missing"),
        (unknown, f"the file's {len(state)} tensors unknown"),
        (shapes, f"{len(own)} tensors of another shape"),
    )
    return "; ".join(f"{len(keys)} of {text}, first {', '.join(keys[:_SHOWN])}" for keys, text in found if keys)


def _other_layouts(module: nn.Module, state: State) -> list[State]:
    """The same tensors under the names of a wrapped timm network, and as timm converts other authors' files."""
    wrapped = {f"model.{key}": value for key, value in state.items()}
    layouts = [{_PARTS.sub(r"\1\2_\3.", key): value for key, value in one.items()} for one in (state, wrapped)]
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        # a file of another network stops it in any of these ways, and the differences will say so
        with contextlib.suppress(LookupError, RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
            layouts.append(convert(dict(state), module))
    return [wrapped, *layouts]
