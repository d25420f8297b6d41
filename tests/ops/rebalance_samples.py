"""Generated images for the rebalancing, and a batch that pads them to one canvas."""

import torch

from dhr_lightning.ops.cam import gather_classes, normalize_cam
from dhr_lightning.ops.classes import ImageClasses
from dhr_lightning.ops.profiles import RebalanceSettings
from dhr_lightning.ops.rebalance_inputs import RebalanceInputs
from dhr_lightning.ops.rebalancing import rebalance

TAGS, DEPTH, CELL = 5, 6, 8
DEFAULT = RebalanceSettings(min_pixels=6)
MIXED = [
    {"tags": (0, 1, 3)},
    {"tags": (2,), "grid": (3, 6)},
    {"tags": (0, 1, 2, 3, 4), "grid": (6, 6)},
    {"tags": (1, 4), "mask": "ignore"},
    {"tags": (0, 1), "mask": "constant"},
    {"tags": (0, 1, 2), "mask": "tiny", "grid": (4, 7)},
    {"tags": (0, 3), "mask": "stray"},
    {"tags": (), "grid": (2, 2)},
]


def make_image(seed, *, tags, grid=(5, 4), offset=1, mask="random"):
    """One image whose classes have distinct feature directions; classes 1 and 2 look alike to `uss`."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    height, width = grid[0] * CELL, grid[1] * CELL
    known = [0, *[t + 1 for t in tags]] if offset else list(tags) or [TAGS + 1]
    cells = torch.tensor(known)[torch.randint(0, len(known), grid, generator=generator)]
    labels = cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    noise = rand(height, width)
    other = torch.tensor(known)[torch.randint(0, len(known), noise.shape, generator=generator)]
    labels = torch.where(noise < 0.1, other, labels)
    labels = torch.where(noise > 0.93, 255, labels)
    if mask == "ignore":
        labels = torch.full_like(labels, 255)
    if mask == "constant":
        labels = torch.full_like(labels, known[0])
    if mask == "tiny":  # the last class owns one pixel per cell, so it wins no cell
        labels = torch.where(labels == known[-1], known[0], labels)
        labels[::CELL, ::CELL] = known[-1]
    if mask == "stray":
        labels[:CELL] = TAGS + 3
    base = torch.randn(TAGS + 2, DEPTH, generator=generator)
    base[2] = base[1] + 0.2 * torch.randn(DEPTH, generator=generator)
    uss = base[cells].permute(2, 0, 1) + 0.4 * torch.randn(DEPTH, *grid, generator=generator)
    deep = torch.randn(TAGS + 2, DEPTH + 2, generator=generator)
    levels = [deep[cells].permute(2, 0, 1) + 0.5 * torch.randn(DEPTH + 2, *grid, generator=generator) for _ in range(2)]
    levels[1] = levels[1].repeat_interleave(2, 1).repeat_interleave(2, 2)
    multi_hot = torch.zeros(TAGS, dtype=torch.long)
    multi_hot[list(tags)] = 1
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator).byte(),
        "mask": labels,
        "cam": rand(TAGS, *grid) ** 2,
        "uss": uss,
        "wss": levels,
        "tags": multi_hot,
    }


def pad(tensor, height, width, value):
    out = torch.full((*tensor.shape[:-2], height, width), value, dtype=tensor.dtype)
    out[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return out


def run(images, *, offset=1, options=DEFAULT, **refiners):
    """Put images of different size on one canvas; the padding holds plausible but wrong values."""
    grids = [sample["uss"].shape[1:] for sample in images]
    h, w = max(g[0] for g in grids), max(g[1] for g in grids)
    stack = lambda name, k, value: torch.stack([pad(s[name], h * k, w * k, value) for s in images])  # noqa: E731
    tags = torch.stack([s["tags"] for s in images])
    near = torch.stack([pad(torch.ones(g, dtype=torch.bool), h, w, False) for g in grids])
    valid = near.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    padded = not bool(valid.all())
    classes = ImageClasses.from_tags(
        tags, offset=offset, include_background=bool(offset), valid=valid if padded else None
    )
    cam = normalize_cam(stack("cam", 1, 3.0), valid=near)
    levels = [torch.stack([pad(s["wss"][i], h * k, w * k, -2.0) for s in images]) for i, k in enumerate((1, 2))]
    inputs = RebalanceInputs(
        stack("image", CELL, 77),
        stack("mask", CELL, 1),
        gather_classes(cam, classes),
        classes,
        uss=stack("uss", 1, 5.0),
        wss=levels,
    )
    result = rebalance(inputs, settings=options, **refiners)
    return result, classes.keys, valid
