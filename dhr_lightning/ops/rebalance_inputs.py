"""What the mask step is given, and what it refuses before it starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_device, check_dims, check_finite, check_shape, check_unit
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.profiles import RebalanceSettings

_HIGHEST = 255
_ROUNDING = 1e-3  # of maps that were scaled in half precision


@dataclass(frozen=True, eq=False)
class RebalanceInputs:
    """What the mask step is made from, for a batch of images on one canvas.

    Attributes:
        image: `(B, 3, H, W)` uint8 RGB.
        mask: `(B, H, W)` integer class values in [0, 255], 255 = ignore; values of no class of the image count as
            ignore.
        cam: `(B, K, h, w)` normalised class activation maps in [0, 1], in the order of `classes.keys`.
        classes: K classes of each image, the background among them where there is one, and the valid pixels.
        uss: `(B, D, h, w)` unsupervised features over the same canvas, finite.
        wss: supervised features `(B, D, h, w)` per level, each on its own grid over the same canvas.
    """

    image: Tensor
    mask: Tensor
    cam: Tensor
    classes: ImageClasses
    uss: Tensor | None = None
    wss: Sequence[Tensor] = ()


def check_inputs(inputs: RebalanceInputs, settings: RebalanceSettings) -> None:
    """Check the inputs of `rebalance`.

    Raises:
        ValueError: naming the input and what is wrong with it.
    """
    mask, classes = inputs.mask, inputs.classes
    _check_shapes(inputs)
    features = list(_features(inputs.uss, inputs.wss, settings))
    for name, tensor in (
        ("image", inputs.image),
        ("cam", inputs.cam),
        ("keys", classes.keys),
        ("valid", classes.valid),
    ):
        if tensor is not None:
            check_device(name, tensor, "mask", mask)
    low, high = torch.stack(mask.aminmax()).tolist()
    if low < 0 or high > _HIGHEST:
        raise ValueError(f"Expected `mask` values in [0, {_HIGHEST}], but got {low} to {high}.")
    check_unit(
        "cam",
        inputs.cam.masked_fill(~classes.foreground[..., None, None], 0.0),
        hint="Scale maps with `normalize_cam`.",
        tolerance=_ROUNDING,
    )
    for name, level in features:
        check_dims(name, level, "B D h w")
        check_shape(name, level, (len(mask), *level.shape[1:]), "B D h w")
        if 0 in level.shape:
            raise ValueError(f"Expected `{name}` with a channel and a cell at least, but got {tuple(level.shape)}.")
        check_device(name, level, "mask", mask)
        check_finite(name, level, seen=level.sum(dtype=torch.float32))


def _check_shapes(inputs: RebalanceInputs) -> None:
    image, mask, cam, keys, valid = inputs.image, inputs.mask, inputs.cam, inputs.classes.keys, inputs.classes.valid
    check_dims("mask", mask, "B H W")
    for name, tensor, what in (("mask", mask, "an image and a pixel"), ("keys", keys, "a class")):
        if 0 in tensor.shape:
            raise ValueError(f"Expected `{name}` with {what} at least, but got shape {tuple(tensor.shape)}.")
    if mask.is_floating_point():
        raise ValueError(f"Expected `mask` of an integer type, but got {mask.dtype}.")
    batch, height, width = mask.shape
    check_shape("image", image, (batch, 3, height, width), "B 3 H W")
    if image.dtype != torch.uint8:
        raise ValueError(f"Expected `image` of type uint8 with levels 0-255, but got {image.dtype}.")
    check_shape("keys", keys, (batch, keys.shape[1]), "B K")
    check_dims("cam", cam, "B K h w")
    check_shape("cam", cam, (batch, keys.shape[1], *cam.shape[2:]), "B K h w")
    if 0 in cam.shape:
        raise ValueError(f"Expected `cam` with a cell at least, but got shape {tuple(cam.shape)}.")
    if valid is not None:
        check_shape("valid", valid, (batch, height, width), "B H W")


def _features(uss: Tensor | None, wss: Sequence[Tensor], settings: RebalanceSettings) -> Iterator[tuple[str, Tensor]]:
    """Features that the settings read, by argument."""
    if not settings.uss:
        return
    if uss is None:
        raise ValueError("Expected features in `uss`, but got none. Pass them or set uss=False.")
    yield "uss", uss
    if not (settings.wss or settings.features == "both"):
        return
    if not wss:
        raise ValueError("Expected features in `wss`, but got none. Pass them or set wss=False and features='uss'.")
    yield from ((f"wss[{i}]", level) for i, level in enumerate(wss))
