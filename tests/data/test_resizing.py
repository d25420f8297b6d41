"""Whole photos on whole cells: which grid, and where things lie on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dhr_lightning.data.resizing import FILTERS, cell_grid, resize_pixels, resize_to_cells
from dhr_lightning.errors import DataError
from dhr_lightning.models.attention_taps import TransformerTaps
from dhr_lightning.models.cards import INTERPOLATIONS
from tests.models.tiny_backbones import tiny

PHOTO = Path("photo.jpg")


@pytest.mark.parametrize(
    ("size", "side", "cell", "grid"),
    [
        ((300, 500), 448, 16, (17, 28)),  # 28 * 300 / 500 = 16.8
        ((500, 300), 448, 16, (28, 17)),
        ((375, 500), 518, 14, (28, 37)),  # 27.75
        ((375, 500), 336, 8, (32, 42)),  # 31.5, to the even number
        ((100, 100), 100, 8, (12, 12)),  # 12.5
        ((20, 10), 448, 16, (28, 14)),  # enlarged
        ((10, 100), 96, 16, (1, 6)),  # 0.6 of a cell
        ((5, 5), 16, 16, (1, 1)),
    ],
)
def test_the_grid_is_that_of_the_rounded_sides(size: tuple[int, int], side: int, cell: int, grid: tuple[int, int]):
    assert cell_grid(size, side=side, cell=cell, path=PHOTO) == grid


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 40), st.sampled_from([8, 14, 16]))
def test_the_long_side_is_as_asked_and_the_other_is_nearest(height: int, width: int, cells: int, cell: int):
    exact = cells * min(height, width) / max(height, width)
    if exact < 0.5:
        with pytest.raises(DataError, match=r"photo\.jpg is \d+x\d+ pixels: .*would be stretched"):
            cell_grid((height, width), side=cells * cell, cell=cell, path=PHOTO)
        return
    rows, columns = cell_grid((height, width), side=cells * cell, cell=cell, path=PHOTO)
    assert max(rows, columns) == cells
    assert (rows >= columns) if height >= width else (columns >= rows)
    assert min(rows, columns) >= 1
    assert abs(min(rows, columns) - exact) <= 0.5
    assert cell_grid((width, height), side=cells * cell, cell=cell, path=PHOTO) == (columns, rows)


def test_a_narrow_photo_is_refused_and_the_side_it_names_is_enough():
    with pytest.raises(
        DataError, match=r"is 1000x10 pixels.*half a cell of 16 pixels, and would be stretched 3\.6"
    ) as e:
        cell_grid((10, 1000), side=448, cell=16, path=PHOTO)
    side = int(str(e.value).rsplit(" ", 1)[1].removesuffix("."))
    assert cell_grid((10, 1000), side=side, cell=16, path=PHOTO)[0] == 1


@pytest.mark.parametrize(("side", "cell"), [(15, 16), (0, 16), (16, 0), (16, -1)])
def test_a_side_of_less_than_a_cell_is_refused(side: int, cell: int):
    with pytest.raises(ValueError, match=f"0 < cell <= side, but got cell {cell} and side {side}"):
        cell_grid((10, 10), side=side, cell=cell, path=PHOTO)


def test_an_empty_photo_is_refused():
    with pytest.raises(DataError, match=r"photo\.jpg has 4x0 pixels"):
        cell_grid((0, 4), side=16, cell=16, path=PHOTO)


def noise_photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(30, 50), (200, 120)])
def test_photos_are_resized_as_their_card_says(size: tuple[int, int], interpolation: str):
    photo = noise_photo(*size)
    found = resize_to_cells(photo, side=64, cell=8, interpolation=interpolation, path=PHOTO)
    rows, columns = cell_grid(size, side=64, cell=8, path=PHOTO)
    assert found.size == (columns * 8, rows * 8)
    expected = photo.resize(found.size, getattr(Image.Resampling, interpolation.upper()))
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_photo_of_the_right_size_stays_as_it_is():
    photo = noise_photo(32, 64)
    assert resize_to_cells(photo, side=64, cell=8, interpolation="bicubic", path=PHOTO) is photo
    pixels = torch.zeros(1, 3, 32, 64)
    assert resize_pixels(pixels, size=(32, 64), interpolation="bicubic") is pixels


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(56, 88), (16, 24)])
def test_tensors_are_resized_as_photos_are(size: tuple[int, int], interpolation: str):
    photo = noise_photo(40, 60).point(lambda value: 80 + value // 3)  # nothing overshoots, which would be cut off twice
    expected = np.asarray(photo.resize(size[::-1], FILTERS[interpolation])).astype(int)
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None]
    found = resize_pixels(pixels, size=size, interpolation=interpolation)
    assert (found.dtype, found.shape) == (torch.uint8, (1, 3, *size))
    difference = np.abs(found[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= (20 if interpolation == "lanczos" else 1)  # torch has no such filter
    floats = resize_pixels(pixels.float(), size=size, interpolation=interpolation)
    assert floats.dtype == torch.float32
    assert torch.equal(floats.round().clamp(0, 255).to(torch.uint8), found)


def brightness_taps(kind: str) -> TransformerTaps:
    """A transformer whose first channel is the mean red of each patch: blocks add nothing, positions are zero."""
    model = tiny(kind)
    model.norm_pre = nn.Identity()
    for table in (model.pos_embed, model.patch_embed.proj.weight, model.patch_embed.proj.bias):
        if table is not None:
            table.zero_()
    model.patch_embed.proj.weight[0, 0] = 1 / model.patch_embed.patch_size[0] ** 2
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_(), layer.bias.zero_()
    return TransformerTaps(model, "bright", taps=["block2"], projects=False)


def centre(weights: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass, as shares of the sides."""
    weights = weights.float().clamp_min(0)
    shares = [(torch.arange(length) + 0.5) / length for length in weights.shape]
    total = weights.sum()
    return float((weights.sum(1) * shares[0]).sum() / total), float((weights.sum(0) * shares[1]).sum() / total)


@pytest.mark.parametrize("kind", ["dino", "dinov2", "dinov3"])  # patches of 8, 14 and 16
@pytest.mark.parametrize("size", [(97, 61), (64, 64), (61, 200), (300, 225)])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_landmark_lies_at_one_place_in_photo_features_and_mask(kind: str, size: tuple[int, int], flipped: bool):
    taps = brightness_taps(kind)
    height, width = size
    bumps = [np.exp(-(((np.arange(n) + 0.5) / n - 0.6) ** 2) / (2 * 0.17**2)) for n in size]  # wider than a cell
    mask = np.outer(*bumps)
    photo = Image.fromarray(np.round(255 * np.stack([mask] * 3, axis=2)).astype(np.uint8))
    resized = resize_to_cells(photo, side=12 * taps.cell, cell=taps.cell, interpolation="bicubic", path=PHOTO)
    image = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None].float() / 255
    found = taps(image.flip(-1) if flipped else image)["block2"][0, 0]
    assert found.shape == cell_grid(size, side=12 * taps.cell, cell=taps.cell, path=PHOTO)
    truth = torch.from_numpy(mask).flip(-1) if flipped else torch.from_numpy(mask)
    pixels = F.interpolate(found[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    for weights in (found, pixels):
        for place, expected, cells in zip(centre(weights), centre(truth), found.shape, strict=True):
            assert abs(place - expected) * cells < 0.1, "a tenth of a cell"
    row, column = divmod(int(found.argmax()), found.shape[1])
    pixel = divmod(int(truth.argmax()), width)
    assert abs((row + 0.5) / found.shape[0] * height - pixel[0] - 0.5) <= 0.55 * height / found.shape[0]
    assert abs((column + 0.5) / found.shape[1] * width - pixel[1] - 0.5) <= 0.55 * width / found.shape[1]
