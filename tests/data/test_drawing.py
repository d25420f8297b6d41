import numpy as np
import pytest
from numpy.typing import NDArray

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.data.drawing import heat, overlay, panel

CLASSES = ClassSet(("background", "cat", "dog"))
STUFF = ClassSet(("wall", "floor"), has_background=False)


def photo(height: int = 6, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_background_shows_the_photo_in_grey_and_classes_their_colour():
    mask = np.zeros((6, 8), np.uint8)
    mask[0, 0], mask[0, 1] = 1, 2
    shown = overlay(photo(), mask, CLASSES, strength=1.0)
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == CLASSES.palette[1].tolist()
    assert shown[0, 1].tolist() == CLASSES.palette[2].tolist()
    grey = photo().mean(-1) * 0.75 + 48
    np.testing.assert_allclose(shown[1:], np.repeat(grey[1:, :, None], 3, axis=-1), atol=0.5)


def test_weaker_colours_let_the_photo_through():
    mask = np.ones((6, 8), np.uint8)
    none, some, full = (overlay(photo(), mask, CLASSES, strength=s).astype(int) for s in (0.0, 0.5, 1.0))
    assert np.abs(some - (none + full) / 2).max() <= 1
    np.testing.assert_array_equal(none, overlay(photo(), np.zeros_like(mask), CLASSES))


def test_ignored_pixels_are_white():
    mask = np.full((6, 8), 255, np.uint8)
    assert (overlay(photo(), mask, CLASSES, strength=1.0) == 255).all()


def test_without_background_the_first_class_is_coloured():
    shown = overlay(photo(), np.zeros((6, 8), np.uint8), STUFF, strength=1.0)
    assert (shown == STUFF.palette[0]).all()


def test_heat_runs_from_the_grey_photo_to_red():
    black = np.zeros((1, 3, 3), np.uint8)
    shown = heat(black, np.array([[0.0, 0.5, 1.0]]))
    assert shown[0, 0].tolist() == [48, 48, 48]
    assert shown[0, 2].tolist() == pytest.approx(
        [0.3 * 48 + 0.7 * 225, 0.3 * 48 + 0.7 * 40, 0.3 * 48 + 0.7 * 30], abs=1
    )
    np.testing.assert_array_equal(heat(black, np.array([[-3.0, 0.5, 7.0]])), shown)


def test_a_panel_scales_pictures_to_one_width_and_explains_its_colours():
    rows = [[photo(40, 80), photo(40, 80)], [photo(80, 40), photo(80, 40)]]
    small = panel(rows, ["image", "mask"], [], CLASSES, side=64)
    assert small.dtype == np.uint8
    assert small.shape[1] == 2 * (64 + 6) + 6
    large = panel(rows, ["image", "mask"], ["cat", "dog"], CLASSES, side=64)
    assert large.shape[0] > small.shape[0]
    np.testing.assert_array_equal(large[: 22 + 32], small[: 22 + 32])
    colours = {tuple(colour) for colour in large[small.shape[0] - 6 :].reshape(-1, 3).tolist()}
    assert {tuple(CLASSES.palette[value].tolist()) for value in (1, 2)} <= colours
    assert tuple(CLASSES.palette[0].tolist()) not in colours


def test_pictures_of_a_panel_stand_where_their_title_is():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    row = [np.full((10, 10, 3), colour, np.uint8) for colour in colours]
    shown = panel([row], ["a", "b", "c"], [], CLASSES, side=30)
    for column, colour in enumerate(colours):
        left = 6 + column * 36
        assert (shown[22:52, left : left + 30] == colour).all()
        assert (shown[22:52, left + 30 : left + 36] == 255).all()


def test_a_long_legend_breaks_into_lines():
    rows = [[photo(20, 20)]]
    one = panel(rows, ["image"], ["cat"], CLASSES, side=40)
    both = panel(rows, ["image"], ["cat", "dog"], CLASSES, side=40)
    assert both.shape[0] == one.shape[0] + 22
