import numpy as np
import pytest

from dhr_lightning.data.preparation.regions import region_mask
from dhr_lightning.errors import DataError


def test_a_polygon_covers_the_pixels_whose_middle_it_surrounds():
    mask = region_mask([[1, 1, 4, 1, 4, 3, 1, 3]], height=5, width=6, where="x")
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    assert mask.dtype == bool


def test_polygons_agree_with_a_test_of_every_pixel_except_at_the_outline():
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = 40, 50
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        corners = np.stack([25 + 20 * np.cos(angle), 20 + 15 * np.sin(angle)], axis=1)  # convex: on an ellipse
        edge = np.roll(corners, -1, axis=0) - corners
        middle = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
        offset = middle[..., None, :] - corners
        distance = (edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]) / np.linalg.norm(edge, axis=-1)
        inside = distance.min(axis=-1)  # to the nearest edge; negative outside
        mask = region_mask([corners.ravel().tolist()], height=height, width=width, where="x")
        clear = np.abs(inside) > 0.5
        np.testing.assert_array_equal(mask[clear], inside[clear] > 0)


def test_run_lengths_go_down_the_columns_plain_and_compressed():
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    compressed = {"size": [2, 3], "counts": "123"}
    for value in (plain, compressed):
        mask = region_mask(value, height=2, width=3, where="x")
        np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


def test_plain_run_lengths_may_hold_empty_runs():
    mask = region_mask({"size": [2, 3], "counts": [1, 1, 0, 1, 3]}, height=2, width=3, where="x")
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


def test_parts_are_united_and_two_corners_cover_nothing():
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [3, 0, 5, 0, 5, 2, 3, 2], [0, 0, 5, 5]]
    mask = region_mask(parts, height=3, width=5, where="x")
    assert mask.sum() == 8
    for nothing in ([], [[0, 0, 5, 5]], [[0, 0, 5, 5], [1, 1]]):
        assert not region_mask(nothing, height=3, width=5, where="x").any()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [2, 3], "counts": [1, 2, 4]},
        {"size": [3, 2], "counts": [1, 2, 3]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": [1, 2, 2]},
        {"size": [2, 3], "counts": [1.5, 2.5, 2]},
        {"size": [2, 3], "counts": "122"},
        {"size": [2, 3], "counts": "124"},
        {"size": [3, 2], "counts": "123"},
        {"size": [2, 3], "counts": 6},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "h" * 40},
        {"size": [2, 3], "counts": "\u00e9"},
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(segmentation: dict[str, object]):
    with pytest.raises(DataError, match=r"Run lengths of annotation 7 .* its image is 2x3"):
        region_mask(segmentation, height=2, width=3, where="annotation 7")


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        "polygon",
        {},
        [[0, 0, 1]],
        [1, 2, 3, 4, 5, 6],
        [[0, 0, 1, 1, 2, "3"]],
        [[0, 0, 1, 1, 2, float("nan")]],
        [[0, 0, 1, 1, 2, 1e12]],
    ],
)
def test_what_is_no_region_is_refused(segmentation: object):
    with pytest.raises(DataError, match="of annotation 7"):
        region_mask(segmentation, height=2, width=3, where="annotation 7")
