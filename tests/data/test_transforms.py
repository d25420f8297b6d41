"""Augmentation and the geometry that brings features to the crop."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dhr_lightning.data.sample import sample_features
from dhr_lightning.data.transforms import Augmentation, whole_image
from dhr_lightning.errors import ConfigError

WIDTH, HEIGHT = 64, 48
STILL = (0.0, 0.0, 0.0, 0.0)
CROPS = {"smaller than the image": 24, "wider but lower": 56, "larger than the image": 120}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinate_image() -> Image.Image:
    """A photo whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    pixels = np.stack([columns / WIDTH * 255, rows / HEIGHT * 255, np.zeros_like(rows)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def coordinate_features(stride: int) -> Tensor:
    """Features `(2, h, w)` that hold the column and the row, in pixels, of the middle of their cell."""
    rows, columns = (torch.arange(length // stride) * stride + stride / 2 for length in (HEIGHT, WIDTH))
    return torch.stack(torch.broadcast_tensors(columns[None], rows[:, None]))


def decode(pixels: Tensor) -> Tensor:
    """Column and row `(2, S, S)`, in pixels of the original, that a crop of `coordinate_image` shows."""
    return pixels[:2].float() / 255 * torch.tensor([WIDTH, HEIGHT]).view(2, 1, 1)


def inner(position: Tensor, margin: float) -> Tensor:
    """Pixels further than `margin` from the border of the original image."""
    x, y = position
    return (x > margin) & (x < WIDTH - margin) & (y > margin) & (y < HEIGHT - margin)


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("stride", [1, 8])
def test_features_follow_every_pixel_through_scale_mirror_crop_and_padding(crop: int, flip: float, stride: int):
    augmentation = Augmentation(crop, (0.5, 2.0), flip, STILL)
    compared = padded = 0
    for seed in range(25):
        pixels, valid, _, geometry = augmentation(coordinate_image(), {}, generator(seed))
        sampled = sample_features(coordinate_features(stride), geometry, canvas=(crop, crop), grid=(crop, crop))
        position = decode(pixels)
        # beyond the middle of the outermost cell features are constant, and resizing blurs the border of the photo
        inside = valid & inner(position, max(stride / 2, 2.5))
        assert geometry.flip == bool(flip)
        assert (sampled - position)[:, inside].abs().max() < 0.6
        assert not sampled[:, ~valid].any()
        compared, padded = compared + int(inside.sum()), padded + int((~valid).sum())
    assert compared > 25 * 300
    assert padded or crop == 24


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_a_landmark_in_photo_mask_and_features_stays_in_one_place(crop: int):
    rows, columns = slice(16, 24), slice(40, 48)
    pixels, mask, features = (
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        torch.zeros(1, 12, 16),
    )
    pixels[rows, columns], mask[rows, columns] = 255, 7
    features[:, 4:6, 10:12] = 1
    seen = 0
    for seed in range(30):
        image, valid, targets, geometry = Augmentation(crop, (0.6, 1.8), 0.5, STILL)(
            Image.fromarray(pixels), {"mask": mask}, generator(seed)
        )
        sampled = sample_features(features, geometry, canvas=(crop, crop), grid=(crop, crop))[0]
        in_photo, in_mask, in_features = image[0] > 127, targets["mask"] == 7, sampled > 0.5
        assert ((in_photo != in_mask).sum() <= 0.3 * in_mask.sum() + 4).all()
        if in_mask.sum() < 30:
            continue
        seen += 1
        centres = [where.nonzero().float().mean(0) for where in (in_photo, in_mask, in_features & valid)]
        assert (centres[0] - centres[1]).abs().max() < 0.8
        assert (centres[0] - centres[2]).abs().max() < 0.8
    assert seen >= 8


@pytest.mark.parametrize("cells", [3, 6, 15])
def test_a_coarse_grid_holds_the_middle_of_its_cells(cells: int):
    side = 120
    for seed in range(10):
        pixels, valid, _, geometry = Augmentation(side, (1.0, 3.0), 0.5, STILL)(coordinate_image(), {}, generator(seed))
        sampled = sample_features(coordinate_features(1), geometry, canvas=(side, side), grid=(cells, cells))
        whole = (valid & inner(decode(pixels), 2.5)).float()[None]
        mean = F.avg_pool2d(decode(pixels), side // cells)
        full = F.avg_pool2d(whole, side // cells)[0] == 1
        if full.any():
            assert (sampled - mean)[:, full].abs().max() < 0.6


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_masks_follow_the_photo_and_padding_is_ignored(crop: int):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = (rows // 8 * 8 + columns // 8).astype(np.uint8)
    for seed in range(25):
        pixels, valid, targets, _ = Augmentation(crop, (0.5, 2.0), 0.5, STILL)(
            coordinate_image(), {"mask": mask, "truth": mask}, generator(seed)
        )
        x, y = decode(pixels)
        middle = ((x % 8 - 4).abs() < 2.5) & ((y % 8 - 4).abs() < 2.5) & valid
        expected = (y // 8 * 8 + x // 8).long()
        assert middle.any()
        assert (targets["mask"] == expected)[middle].all()
        assert targets["mask"].dtype == torch.int64
        assert torch.equal(targets["mask"], targets["truth"])
        assert torch.equal(targets["mask"] == 255, ~valid)
        assert not pixels[:, ~valid].any()


def test_the_valid_area_is_the_box_that_the_geometry_names():
    for crop in CROPS.values():
        _, valid, _, geometry = Augmentation(crop, (0.5, 2.0), 0.5, STILL)(coordinate_image(), {}, generator(crop))
        left, top, right, bottom = geometry.destination
        assert valid.sum() == (right - left) * (bottom - top)
        assert valid[top:bottom, left:right].all()
        assert geometry.size == (HEIGHT, WIDTH)
        x0, y0, x1, y1 = geometry.source
        assert 0 <= x0 < x1 <= WIDTH
        assert 0 <= y0 < y1 <= HEIGHT
        assert (x1 - x0) * geometry.scale[0] == pytest.approx(right - left, abs=1e-6)
        assert (y1 - y0) * geometry.scale[1] == pytest.approx(bottom - top, abs=1e-6)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_scaling_a_crop_of_the_whole_photo_is_the_photo(flip: float):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    crop, valid, _, geometry = Augmentation(32, (1.0, 1.0), flip, STILL)(Image.fromarray(pixels), {}, generator(0))
    np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), pixels[:, ::-1] if flip else pixels)
    assert valid.all()
    assert geometry == ((0.0, 0.0, 32.0, 32.0), (0, 0, 32, 32), (1.0, 1.0), bool(flip), (32, 32))


def test_a_range_in_pixels_sets_the_long_side():
    for image, long_side in (
        (coordinate_image(), WIDTH),
        (coordinate_image().transpose(Image.Transpose.ROTATE_90), WIDTH),
    ):
        _, _, _, geometry = Augmentation(16, (80, 80), 0.0, STILL)(image, {}, generator(0))
        assert geometry.scale == pytest.approx((80 / long_side, 80 / long_side))


def test_every_draw_of_the_scale_is_in_its_range_and_crops_move():
    geometries = [
        Augmentation(24, (0.75, 1.5), 0.5, STILL)(coordinate_image(), {}, generator(seed))[3] for seed in range(60)
    ]
    scales = [geometry.scale[0] for geometry in geometries]
    assert min(scales) == pytest.approx(0.75, abs=0.05)
    assert max(scales) == pytest.approx(1.5, abs=0.05)
    assert 15 < sum(geometry.flip for geometry in geometries) < 45
    assert len({geometry.source for geometry in geometries}) > 50


def test_jitter_changes_colours_only():
    still = Augmentation(56, (0.5, 2.0), 0.5, STILL)
    jittered = Augmentation(56, (0.5, 2.0), 0.5, (0.3, 0.3, 0.3, 0.1))
    mask = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)
    for seed in range(5):
        first, second = (a(coordinate_image(), {"mask": mask}, generator(seed)) for a in (still, jittered))
        assert not torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert torch.equal(first[2]["mask"], second[2]["mask"])
        assert first[3] == second[3]
        assert not second[0][:, ~second[1]].any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_are_resized_as_asked_and_masks_by_the_nearest_pixel(interpolation: str):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    photo, mask = Image.fromarray(noise), noise[..., 0]
    size = (96, 72)  # half as large again
    augmentation = Augmentation(96, (96, 96), 0.0, STILL, interpolation)
    pixels, valid, targets, _ = augmentation(photo, {"mask": mask}, generator(0))
    cut = pixels[:, valid.any(1)].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(cut, np.array(photo.resize(size, Image.Resampling[interpolation.upper()])))
    nearest = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    np.testing.assert_array_equal(targets["mask"][valid.any(1)].numpy(), nearest)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ConfigError, match="interpolation to be bilinear or bicubic, but got 'lanczos'"):
        Augmentation(32, interpolation="lanczos")


def test_the_generator_is_the_only_source_of_randomness():
    augmentation = Augmentation(40, (0.5, 2.0), 0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmentation(coordinate_image(), {}, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (augmentation(coordinate_image(), {}, generator(seed)) for seed in (3, 4))
    assert torch.equal(first[0], again[0])
    assert first[3] == again[3]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("crop", "scale"), [(0, (1.0, 2.0)), (8, (0.0, 1.0)), (8, (2.0, 1.0)), (8, (-1.0, 1.0))])
def test_unusable_ranges_are_refused(crop: int, scale: tuple[float, float]):
    with pytest.raises(ConfigError, match="Expected crop_size > 0"):
        Augmentation(crop, scale)


def test_a_whole_photo_keeps_its_pixels_and_has_the_identity():
    mask = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)
    pixels, valid, targets, geometry = whole_image(coordinate_image(), {"mask": mask})
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.array(coordinate_image()))
    assert valid.shape == (HEIGHT, WIDTH)
    assert valid.all()
    np.testing.assert_array_equal(targets["mask"].numpy(), mask)
    features = torch.rand(3, 6, 8, generator=generator(0))
    sampled = sample_features(features, geometry, canvas=(HEIGHT, WIDTH), grid=(6, 8))
    torch.testing.assert_close(sampled, features)
