"""Moving images, maps and valid areas between a feature grid and pixels."""

import torch
from torch import Tensor
from torch.nn import functional

from dhr_lightning.ops._checks import as_float, check_dims, check_shape


def valid_cells(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mark grid cells that hold at least one valid pixel.

    Args:
        valid: `(B, H, W)` bool, pixels inside the image.
        grid: `(h, w)` of the feature grid over the same canvas.

    Returns:
        `(B, h, w)` bool.
    """
    check_dims("valid", valid, "B H W")
    return functional.adaptive_max_pool2d(valid.float()[:, None], grid)[:, 0] > 0


def resize_maps(maps: Tensor, size: tuple[int, int], *, valid: Tensor | None = None) -> Tensor:
    """Resize bilinearly, as if the canvas ended where the valid cells end.

    Args:
        maps: `(B, K, h, w)`, any finite range.
        size: `(H, W)` of the result, over the same canvas.
        valid: `(B, h, w)` bool, cells that count. Weights of the others go to their valid neighbours, which is what
            bilinear resizing does at the border of an unpadded image.

    Returns:
        `(B, K, H, W)` float; 0 where no valid cell is near.
    """
    check_dims("maps", maps, "B K h w")
    maps = as_float(maps)
    if maps.shape[-2:] == size:
        return maps if valid is None else maps * valid[:, None]
    if valid is None:
        return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    check_shape("valid", valid, (len(maps), *maps.shape[-2:]), "B h w")
    weight = valid[:, None].to(maps.dtype)
    both = torch.cat([maps * weight, weight], dim=1)  # (B, K + 1, h, w)
    both = functional.interpolate(both, size, mode="bilinear", align_corners=False)  # (B, K + 1, H, W)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-6)


def multiple_size(size: tuple[int, int], multiple: int, *, scale: float = 1.0) -> tuple[int, int]:
    """`(H, W)` times `scale`, cut to whole pixels, then rounded up to multiples of `multiple`."""
    height, width = (-(-max(1, int(length * scale)) // multiple) * multiple for length in size)
    return height, width


def resize_to_multiple(image: Tensor, multiple: int, *, scale: float = 1.0) -> Tensor:
    """Resize whole images bilinearly, so that the cells of a network lie evenly over them and nothing is padded.

    Args:
        image: `(B, 3, H, W)`, without padding.
        multiple: pixels per cell, such as the patch of a vision transformer.
        scale: relative size, > 0.

    Returns:
        `(B, 3, *multiple_size)`; the image itself if that is its size, else float.

    Source: features of DHR (arXiv:2404.00380), published code.
    """
    size = multiple_size((image.shape[-2], image.shape[-1]), multiple, scale=scale)
    if image.shape[-2:] == size:
        return image
    return functional.interpolate(as_float(image), size, mode="bilinear", align_corners=False)
