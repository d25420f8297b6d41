"""Layers of stored features in the places of the two kinds of features that DHR compares."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dhr_lightning.data.sample import Batch
from dhr_lightning.errors import ConfigError
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.resize import resize_maps

Layers = dict[str, tuple[str, ...]]


def default_layers(taps: Sequence[str]) -> Layers:
    """Layers by place where none are named.

    Args:
        taps: names of the layers that are stored, in order.

    Returns:
        `uss`: the keys of a vision transformer, or else the last layer; `wss`: the last two layers without the keys.
    """
    others = [name for name in taps if name != "keys"] or list(taps)
    return {"uss": ("keys",) if "keys" in taps else (others[-1],), "wss": tuple(others[-2:])}


def chosen_layers(features: Mapping[str, Sequence[str]] | None) -> Layers | None:
    """Layers that a setting `features: {uss: [...], wss: [...]}` names, or None.

    Raises:
        ConfigError: if it names other places, or no layer for one.
    """
    if features is None:
        return None
    if set(features) != {"uss", "wss"} or not all(features.values()):
        raise ConfigError(f"Expected features to name layers for uss and for wss, but got {dict(features)}.")
    return {name: tuple(layers) for name, layers in features.items()}


def stored_inputs(
    batch: Batch, classes: ImageClasses, cam: Tensor, taps: Mapping[str, Tensor], layers: Layers | None
) -> RebalanceInputs:
    """What the mask step reads, from layers of stored features.

    Args:
        batch: whole images with `masks`.
        classes: of the images, the background among them where there is one.
        cam: `(B, K, h, w)` in [0, 1] in the order of `classes`, without the background.
        taps: `(B, D, h, w)` by layer, standardised.
        layers: by place; None for `default_layers`.
    """
    places = layers or default_layers(list(taps))
    grid = next(iter(taps.values())).shape[-2:]
    if classes.keys.shape[1] > cam.shape[1]:  # the background has no CAM, and there may be no other class
        cam = torch.nn.functional.pad(cam, (0, 0, 0, 0, 1, 0))
    fine = resize_maps(cam, (grid[0] * 2, grid[1] * 2))
    return RebalanceInputs(
        batch["pixels"],
        batch["inputs"]["masks"],
        fine,
        classes,
        uss=torch.cat([taps[name] for name in places["uss"]], 1),
        wss=[taps[name] for name in places["wss"]],
    )
