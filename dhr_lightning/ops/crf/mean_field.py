"""Mean-field inference of the dense CRF on permutohedral lattices."""

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dhr_lightning.ops.crf.lattice import Lattice, build_lattice
from dhr_lightning.ops.crf.lattice_cache import LatticeCache
from dhr_lightning.ops.crf.worker import CRFParameters

# Pixels that share one lattice: a device wants the whole batch, a processor's caches rather one image after the other.
_PIXELS_PER_LATTICE = {"cpu": 2**17}
_PIXELS_PER_LATTICE_ON_DEVICE = 2**26

Box = tuple[int, int, int, int]
_Lattices = dict[Hashable, Lattice]


class _Group(NamedTuple):
    """Images `first` to `last` - 1 of a batch, which share one lattice; pixels outside their boxes are left out.

    Attributes:
        pixels: `(N,)` int64, flat index of every pixel that takes part, counted from the first image.
        image, row, column: `(N,)` int64, where it is; rows and columns count from the corner of its box.
    """

    first: int
    last: int
    pixels: Tensor
    image: Tensor
    row: Tensor
    column: Tensor


def mean_field(
    image: Tensor,
    probability: Tensor,
    present: Tensor,
    boxes: list[Box],
    parameters: CRFParameters,
    lattices: tuple[LatticeCache, tuple[Tensor | None, ...]],
) -> Tensor:
    """Refine a batch; the arguments are those of `dense_crf`, checked.

    Args:
        image: `(B, H, W, 3)` uint8.
        probability: `(B, C, H, W)` float.
        present: `(B, C)` bool.
        boxes: top, left, bottom, right of every image; an empty box leaves the image out.
        parameters: kernels and iterations.
        lattices: where lattices are looked for and left, and the tensors by which they are known there.

    Returns:
        `(B, C, H, W)` float32.

    Source: Krähenbühl & Koltun, NIPS 2011, algorithm 1, with the normalisation of their code.
    """
    cache, sources = lattices
    sizes = [(bottom - top, right - left) for top, left, bottom, right in boxes]
    reach, widths = parameters.gaussian_sxy, (parameters.bilateral_sxy, parameters.bilateral_srgb)
    smooth: _Lattices = cache.get((), ("gaussian", reach, tuple(sizes), image.device), dict)
    colour: _Lattices = cache.get(sources, ("bilateral", *widths, tuple(boxes), image.device), dict)
    refined = torch.zeros(probability.shape, device=image.device)
    counts = present.sum(1).tolist()
    for first, last in _ranges(sizes, image.device.type):
        most = max(counts[first:last])
        if most == 0:
            continue
        group = _locate(first, last, boxes, (image.shape[1], image.shape[2]), image.device)
        kernels = []
        if parameters.gaussian_compat > 0 and most > 1:
            build = partial(_build, group, None, reach, 1.0)
            kernels.append((_recall(smooth, tuple(sizes[first:last]), build), parameters.gaussian_compat))
        if parameters.bilateral_compat > 0 and most > 1:
            build = partial(_build, group, image[first:last], *widths)
            kernels.append((_recall(colour, (first, last), build), parameters.bilateral_compat))
        chosen = slice(first, last)
        refined[chosen] = _infer(probability[chosen], present[chosen], group, kernels, parameters.iterations, most)
    return refined


def _recall(lattices: _Lattices, key: Hashable, build: Callable[[], Lattice]) -> Lattice:
    """Return the lattice of a run of images, built when it is first needed."""
    if key not in lattices:
        lattices[key] = build()
    return lattices[key]


def _ranges(sizes: list[tuple[int, int]], device: str) -> Iterator[tuple[int, int]]:
    """Cut the batch into runs of images with as many pixels as one lattice should have; empty ends drop out."""
    most = _PIXELS_PER_LATTICE.get(device, _PIXELS_PER_LATTICE_ON_DEVICE)
    first, pixels = 0, 0
    for index, (height, width) in enumerate(sizes):
        if pixels and pixels + height * width > most:
            yield first, index
            first, pixels = index, 0
        pixels += height * width
    if pixels:
        yield first, len(sizes)


def _locate(first: int, last: int, boxes: list[Box], shape: tuple[int, int], device: torch.device) -> _Group:
    """List the pixels inside the boxes of a run of images."""
    height, width = shape
    top, left, bottom, right = torch.tensor(boxes[first:last], device=device).T[:, :, None]  # each (B, 1)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    within_rows, within_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    pixels = (within_rows[:, :, None] & within_columns[:, None, :]).flatten().nonzero()[:, 0]  # (N,)
    image = pixels.div(height * width, rounding_mode="floor")
    place = pixels - image * (height * width)
    row = place.div(width, rounding_mode="floor")
    column = place - row * width
    row -= top[:, 0].index_select(0, image)
    column -= left[:, 0].index_select(0, image)
    return _Group(first, last, pixels, image, row, column)


def _build(group: _Group, image: Tensor | None, reach: float, tolerance: float) -> Lattice:
    """Build the normalised kernel over positions and, if there is an image `(B, H, W, 3)`, colours."""
    # a width held in a tensor is divided by on every device; a plain number may become a multiplication
    positions = torch.stack([group.column, group.row], 1).float() / torch.tensor(reach, device=group.row.device)
    features = positions
    if image is not None:
        colours = image.reshape(-1, 3).index_select(0, group.pixels).float()
        features = torch.cat([positions, colours / torch.tensor(tolerance, device=colours.device)], 1)  # (N, 5)
    return build_lattice(features, group=group.image if group.last > group.first + 1 else None).normalize()


def _infer(
    probability: Tensor,
    present: Tensor,
    group: _Group,
    kernels: list[tuple[Lattice, float]],
    iterations: int,
    most: int,
) -> Tensor:
    """Iterate on the `most` classes that an image of the group has at most; `(B, C, H, W)`."""
    batch, classes, height, width = probability.shape
    keys = present.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, K)
    exists = present.gather(1, keys)  # (B, K)
    maps = keys[:, :, None, None].expand(-1, -1, height, width)
    scores = probability.gather(1, maps).permute(0, 2, 3, 1).reshape(-1, most)  # (B H W, K)
    scores = scores.index_select(0, group.pixels).float().clamp_(1e-5, 1.0).log_()  # (N, K)
    counts = exists.index_select(0, group.image)  # (N, K)
    # absent classes may hold NaN; an image without any class gets numbers, which are dropped below
    absent = scores.new_zeros(batch, 1).masked_fill_(exists.any(1, keepdim=True), -torch.inf)  # (B, 1)
    scores = torch.where(counts, scores, absent.index_select(0, group.image))
    belief = _softmax(scores.clone())
    for _ in range(iterations if kernels else 0):
        logits = scores.clone()
        for lattice, weight in kernels:
            logits.add_(lattice.filter(belief), alpha=weight)
        belief = _softmax(logits)
    canvas = scores.new_zeros(batch * height * width, most).index_copy_(0, group.pixels, belief * counts)
    compact = canvas.view(batch, height, width, most).permute(0, 3, 1, 2)
    return compact.new_zeros(batch, classes, height, width).scatter_(1, maps, compact)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax of `(N, K)` over K, in place; for few classes several times as fast as the library's on a processor."""
    logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    logits /= logits.sum(1, keepdim=True)
    return logits
