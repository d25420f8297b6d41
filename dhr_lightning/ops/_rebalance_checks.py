"""What the mask step refuses before it starts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dhr_lightning.ops._checks import check_device, check_dims, check_finite, check_range, check_shape, check_unit
from dhr_lightning.ops.profiles import RebalanceSettings

_HIGHEST = 255
_ROUNDING = 1e-3  # of maps that were scaled in half precision


def check_input(
    image: Tensor,
    mask: Tensor,
    cam: Tensor,
    uss: Tensor | None,
    wss: Sequence[Tensor],
    keys: Tensor,
    present: Tensor,
    offset: int,
    valid: Tensor | None,
    settings: RebalanceSettings,
) -> None:
    """Check the arguments of `rebalance`, in its order.

    Raises:
        ValueError: naming the argument and what is wrong with it.
    """
    _check_shapes(image, mask, cam, keys, present, valid)
    check_range("offset", offset, 0, 1)
    features = list(_features(uss, wss, settings))
    for name, tensor in (("image", image), ("cam", cam), ("keys", keys), ("present", present), ("valid", valid)):
        if tensor is not None:
            check_device(name, tensor, "mask", mask)
    low, high = torch.stack(mask.aminmax()).tolist()
    if low < 0 or high > _HIGHEST:
        raise ValueError(f"Expected `mask` values in [0, {_HIGHEST}], but got {low} to {high}.")
    tagged = present & (keys >= offset)
    check_unit(
        "cam",
        cam.masked_fill(~tagged[..., None, None], 0.0),
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


def _check_shapes(
    image: Tensor, mask: Tensor, cam: Tensor, keys: Tensor, present: Tensor, valid: Tensor | None
) -> None:
    check_dims("mask", mask, "B H W")
    check_dims("keys", keys, "B K")
    for name, tensor, what in (("mask", mask, "an image and a pixel"), ("keys", keys, "a class")):
        if 0 in tensor.shape:
            raise ValueError(f"Expected `{name}` with {what} at least, but got shape {tuple(tensor.shape)}.")
    if mask.is_floating_point():
        raise ValueError(f"Expected `mask` of an integer type, but got {mask.dtype}.")
    batch, height, width = mask.shape
    check_shape("image", image, (batch, height, width, 3), "B H W 3")
    if image.dtype != torch.uint8:
        raise ValueError(f"Expected `image` of type uint8 with levels 0-255, but got {image.dtype}.")
    check_shape("present", present, (batch, keys.shape[1]), "B K")
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
